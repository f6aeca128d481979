"""A training step with and without ``fer_lightning.model.depthwise``, as a ratio.

    python benchmarks/depthwise.py

Batches of 64 gray images, forward and backward, in processor time on the CPU, all its threads; the two take turns.
"""

import argparse

import timm
import torch
from torch.nn import functional as F

from fer_lightning.model.depthwise import replace_depthwise
from measure import alternate, cpu_seconds, median, show

NETWORKS = ("tf_efficientnetv2_b0", "efficientnet_b0")
SIZES = (48, 64, 96)


def measure(name: str, size: int, rounds: int) -> list[object]:
    """A row of the table."""
    images = torch.randn(64, 1, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(64, dtype=torch.long)
    plain, replaced = (
        timm.create_model(name, in_chans=1).to(memory_format=torch.channels_last).train() for _ in range(2)
    )
    replace_depthwise(replaced)

    def step(network: torch.nn.Module) -> float:
        return cpu_seconds(lambda: F.cross_entropy(network(images), labels).backward())

    found = alternate({"plain": lambda: step(plain), "replaced": lambda: step(replaced)}, rounds)
    before, after = median(found["plain"]), median(found["replaced"])
    return [name, size, round(before * 1000), round(after * 1000), before / after]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rows = [measure(name, size, rounds) for name in NETWORKS for size in SIZES]
    show("step of batch 64", ["network", "px", "plain, CPU-ms", "replaced, CPU-ms", "faster by"], rows)


if __name__ == "__main__":
    main()
