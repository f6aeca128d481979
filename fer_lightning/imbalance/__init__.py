"""Methods against class imbalance: class weights, losses and samplers."""
