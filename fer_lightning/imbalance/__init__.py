"""Methods against class imbalance: weights, losses, samplers, mixing, second stage and adjustment."""
