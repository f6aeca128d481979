"""Images per CPU-second from storage to the network's input, in one process with one thread.

    python benchmarks/data_path.py --data fer2013.zip

Four pipelines with the same changes (flip, rotation of 10 degrees, shift of 5 %, scale of 10 %; normalised; resized to
``--sizes``) on the same images, measured in alternating rounds:

- torchvision: ``ImageFolder`` and transforms v2, as its documentation composes them
- timm: ``create_dataset`` and ``create_loader`` with its own training transforms (its random crop in place of the warp)
- albumentations: ``augment.backend=albumentations``
- batched: ``augment.backend=batched``, the default
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measure import alternate, cpu_seconds, median, show, spread

BATCH = 64


def write_folder(faces: Any, rows: np.ndarray, folder: Path) -> None:
    """The layout of the Kaggle archive's ``train/``: what both peers read."""
    import cv2

    from fer_lightning.data.faces import EMOTIONS

    for row in rows:
        place = folder / EMOTIONS[faces.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{row}.jpg"), faces.images[row], [cv2.IMWRITE_JPEG_QUALITY, 95])


def torchvision_loader(folder: Path, size: int) -> Iterable[Any]:
    """https://pytorch.org/vision/stable/transforms.html: to an image tensor first, floats last."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    changes = v2.Compose(
        [
            v2.ToImage(),
            v2.Grayscale(),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
            *([v2.Resize((size, size), antialias=True)] if size != 48 else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.25]),
        ]
    )
    images = ImageFolder(str(folder), changes)
    return torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True)


def timm_loader(folder: Path, size: int) -> Iterable[Any]:
    """timm's own loader; colour jitter off, which none of the others has."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(folder), is_training=True, input_img_mode="L")
    return create_loader(
        dataset,
        input_size=(1, size, size),
        batch_size=BATCH,
        is_training=True,
        scale=(0.81, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=(0.5,),
        std=(0.25,),
        num_workers=0,
        use_prefetcher=False,
        persistent_workers=False,
        device=torch.device("cpu"),
    )


def our_loader(faces: Any, rows: np.ndarray, size: int, backend: str) -> Iterable[Any]:
    """The data module's batches, and the part of the model that normalises them."""
    from fer_lightning.config.augment import Strengths
    from fer_lightning.data.splits import Split
    from fer_lightning.imbalance.samplers import InstanceSampler
    from fer_lightning.loading.augment_batches import BatchedAugmentation
    from fer_lightning.loading.augment_images import Augmentation
    from fer_lightning.loading.datamodule import FERDataModule, Loading
    from fer_lightning.model.classifier import EmotionClassifier

    strengths = Strengths(hflip=0.5, rotate=10.0, translate=0.05, scale=0.1)
    augmentation = BatchedAugmentation(strengths, 48) if backend == "batched" else Augmentation(strengths)
    nobody = np.array([], dtype=np.int64)
    split = Split(train=rows, val=nobody, tests={})
    datamodule = FERDataModule(faces, split, InstanceSampler, augmentation, Loading(BATCH, size=lambda epoch: size), 0)
    head = {"hidden": [], "activation": "ReLU", "batch_norm": False, "dropout": 0.0}
    settings = {"name": "test_efficientnet", "weights": "none", "in_channels": 1, "image_size": size, "stem_stride": 2}
    model = EmotionClassifier({**settings, "drop_path": 0.0, "head": head, "freeze_epochs": 0}, {}, [1] * 7, {}, {})
    loader = datamodule.train_dataloader()
    epoch = 0

    class Epochs:
        def __iter__(self) -> Any:
            nonlocal epoch
            datamodule.sampler.set_epoch(epoch)
            epoch += 1
            for batch in loader:
                images, labels = datamodule.on_after_batch_transfer(batch, 0)
                yield model.prepare(images, size), labels

    return Epochs()


def speed(loader: Iterable[Any], size: int) -> float:
    """Images per CPU-second over one epoch."""
    images = 0

    def epoch() -> None:
        nonlocal images
        for batch, _ in loader:
            assert tuple(batch.shape[1:]) == (1, size, size), batch.shape
            images += len(batch)

    seconds = cpu_seconds(epoch)
    return images / seconds


def main() -> None:
    """Print a table for each input size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="fer2013.zip; default: drawn faces, which the output states")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 96])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import cv2

    from fer_lightning.data import fer2013, synthetic

    cv2.setNumThreads(0)
    faces = fer2013.load(arguments.data) if arguments.data else synthetic.draw(arguments.images * 5 // 4 + 200)
    training = np.flatnonzero(faces.usage == 0)
    rows = np.sort(np.random.default_rng(0).choice(training, min(arguments.images, len(training)), replace=False))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(faces, rows, folder)
        for size in arguments.sizes:
            loaders: dict[str, Callable[[], Iterable[Any]]] = {
                "torchvision ImageFolder + v2": partial(torchvision_loader, folder, size),
                "timm create_loader": partial(timm_loader, folder, size),
                "ours, albumentations": partial(our_loader, faces, rows, size, "albumentations"),
                "ours, batched": partial(our_loader, faces, rows, size, "batched"),
            }
            built = {name: build() for name, build in loaders.items()}
            found = alternate({name: partial(speed, loader, size) for name, loader in built.items()}, arguments.rounds)
            ours = median(found["ours, batched"])
            table = [[name, median(values), spread(values), ours / median(values)] for name, values in found.items()]
            data = "drawn faces" if faces.synthetic else "FER-2013"
            show(
                f"data path, {len(rows):,} images of {data} at {size} px, batches of {BATCH}",
                ["pipeline", "images per CPU-second", "range", "batched is faster by"],
                table,
            )


if __name__ == "__main__":
    main()
