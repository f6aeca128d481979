"""Scores of one trained model: probabilities, metrics, figures, scorecard."""
