"""Several classifiers as one network: the mean of their calibrated probabilities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Ensemble(nn.Module):
    """Log of the mean of the members' calibrated probabilities: logits (B, C), whose softmax is that mean.

    Called with images as ``EmotionClassifier`` takes them: each member resizes and normalises them in its own way.

    Args:
        members: trained classifiers of the same C classes, which take images and return logits (B, C).
        temperatures: of each member; its logits are divided by it.
    """

    def __init__(self, members: Sequence[nn.Module], temperatures: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.temperatures = tuple(temperatures)

    def forward(self, images: Tensor) -> Tensor:
        calibrated = zip(self.members, self.temperatures, strict=True)
        logs = [F.log_softmax(member(images).float() / temperature, dim=1) for member, temperature in calibrated]
        return torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))  # not log(mean), which could be of 0
