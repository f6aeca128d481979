"""Memory of a process that trains on a cache of images which is read through its memory map.

    python benchmarks/larger_than_memory.py --gigabytes 6

Writes a cache of colour images of 224 pixels and goes through it in batches with ``augment.backend=batched`` on the
CPU. Printed by share of the epoch: the process's own memory (``RssAnon`` of ``/proc/self/status``), which the size of
the set must not raise, and the pages of the file that happen to be in memory (``RssFile``), which the system takes back
when it needs them.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from measure import show

SIDE = 224


def write(path: Path, images: int) -> np.ndarray:
    """Noise, written block by block, in the order of the cache: a pixel's numbers together."""
    shape = (images, SIDE, SIDE, 3)
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    rng = np.random.default_rng(0)
    for start in range(0, images, 256):
        stored[start : start + 256] = rng.integers(0, 256, (min(256, images - start), *shape[1:]), dtype=np.uint8)
    stored.flush()
    del stored
    return np.load(path, mmap_mode="r")


def resident(kind: str) -> float:
    """``RssAnon`` or ``RssFile`` of this process in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    from fer_lightning.config.augment import Strengths
    from fer_lightning.data.faces import Faces, channels_first
    from fer_lightning.data.splits import Split
    from fer_lightning.imbalance.samplers import InstanceSampler
    from fer_lightning.loading.augment_batches import BatchedAugmentation
    from fer_lightning.loading.datamodule import FERDataModule, Loading

    images = int(arguments.gigabytes * 1e9 / (3 * SIDE * SIDE))
    with tempfile.TemporaryDirectory() as folder:
        stored = write(Path(folder) / "images.npy", images)
        labels, nothing = np.arange(images) % 2, np.array([], dtype=np.int64)
        ids = np.arange(images).astype(str)
        faces = Faces(
            channels_first(stored),
            labels,
            np.zeros(images, np.uint8),
            ids,
            np.arange(images),
            "noise",
            "",
            classes=("a", "b"),
        )
        split = Split(train=np.arange(images), val=nothing, tests={})
        augmentation = BatchedAugmentation(Strengths(hflip=0.5), SIDE)
        datamodule = FERDataModule(faces, split, InstanceSampler, augmentation, Loading(64), 0)
        rows = []
        batches = len(datamodule.train_dataloader())
        for number, batch in enumerate(datamodule.train_dataloader()):
            datamodule.on_after_batch_transfer(batch, 0)
            if number % (batches // 10) == 0:
                rows.append([f"{number / batches:.0%}", f"{resident('RssAnon'):.2f}", f"{resident('RssFile'):.2f}"])
        show(
            f"{stored.nbytes / 1e9:.1f} GB of images, one epoch",
            ["share of the epoch", "own memory, GB", "pages of files in memory, GB"],
            rows,
        )


if __name__ == "__main__":
    main()
