"""From pictures to answers: what the commands that use a trained model are made of."""
