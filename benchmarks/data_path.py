"""Images per CPU-second from storage to the network's input, with one thread.

    python benchmarks/data_path.py --data fer2013.zip
    python benchmarks/data_path.py --color --sizes 96 224

Four pipelines with the same changes (flip, rotation of 10 degrees, shift of 5 %, scale of 10 %; normalised; resized to
``--sizes``) on the same images, measured in alternating rounds:

- torchvision: ``ImageFolder`` and transforms v2, as its documentation composes them
- timm: ``create_dataset`` and ``create_loader`` with its own training transforms (its random crop in place of the warp)
- albumentations: ``augment.backend=albumentations``
- batched: ``augment.backend=batched``, the default

With ``--color`` the images are drawn faces in three channels, stored at the size of the network's input. Each pipeline
has a process of its own: ours sets how memory is kept as its runs do, the others leave it as it is, or, with
``--same-memory``, set the same.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from measure import alternate, cpu_seconds, median, show, spread

BATCH = 64

QUALITY = [1, 95]
"""Of JPEG: cv2.IMWRITE_JPEG_QUALITY."""


def write_folder(faces: Any, rows: np.ndarray, folder: Path) -> None:
    """The layout of the Kaggle archive's ``train/``: what both peers read."""
    import cv2

    from fer_lightning.data.faces import EMOTIONS
    from fer_lightning.data.images import as_picture

    for row in rows:
        place = folder / EMOTIONS[faces.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        picture = as_picture(faces.images[row])
        cv2.imwrite(str(place / f"{row}.jpg"), picture[..., ::-1] if picture.ndim == 3 else picture, QUALITY)


def in_colour(faces: Any, side: int) -> Any:
    """The same faces in three tints, enlarged."""
    import cv2

    from fer_lightning.data.faces import Faces

    images = np.empty((len(faces), 3, side, side), np.uint8)
    for number, image in enumerate(faces.images):
        large = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
        images[number] = np.stack([large, large // 2 + 60, 255 - large])
    return Faces.from_arrays(images, faces.labels, faces.usage, faces.ids, "coloured drawn faces", synthetic=True)


def torchvision_loader(folder: Path, size: int, stored: int, channels: int) -> Iterable[Any]:
    """https://pytorch.org/vision/stable/transforms.html: to an image tensor first, floats last."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    changes = v2.Compose(
        [
            v2.ToImage(),
            *([v2.Grayscale()] if channels == 1 else []),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
            *([v2.Resize((size, size), antialias=True)] if size != stored else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * channels, [0.25] * channels),
        ]
    )
    images = ImageFolder(str(folder), changes)
    return torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True, drop_last=True)


def timm_loader(folder: Path, size: int, channels: int) -> Iterable[Any]:
    """timm's own loader; colour jitter off, which none of the others has."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(folder), is_training=True, input_img_mode="L" if channels == 1 else "RGB")
    return create_loader(
        dataset,
        input_size=(channels, size, size),
        batch_size=BATCH,
        is_training=True,
        scale=(0.81, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
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
    augmentation = BatchedAugmentation(strengths, faces.form.size) if backend == "batched" else Augmentation(strengths)
    nobody = np.array([], dtype=np.int64)
    split = Split(train=rows, val=nobody, tests={})
    datamodule = FERDataModule(faces, split, InstanceSampler, augmentation, Loading(BATCH, size=lambda epoch: size), 0)
    head = {"hidden": [], "activation": "ReLU", "batch_norm": False, "dropout": 0.0}
    settings = {"name": "test_efficientnet", "weights": "none", "image_size": size, "stem_stride": 2}
    settings |= {"in_channels": 3 if faces.form.color else 1, "drop_path": 0.0, "head": head, "freeze_epochs": 0}
    model = EmotionClassifier(settings, {}, [1] * 7, {}, {}, form=asdict(faces.form))
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


class Task(NamedTuple):
    """What all pipelines read, and turn into what."""

    data: str | None
    images: int
    color: bool
    size: int
    folder: Path

    @property
    def channels(self) -> int:
        return 3 if self.color else 1

    def faces(self) -> tuple[Any, np.ndarray]:
        """The set, and the rows that are measured."""
        from fer_lightning.data import fer2013, synthetic

        plain = fer2013.load(self.data) if self.data else synthetic.draw(self.images * 5 // 4 + 200)
        training = np.flatnonzero(plain.usage == 0)
        rows = np.random.default_rng(0).choice(training, min(self.images, len(training)), replace=False)
        return in_colour(plain, self.size) if self.color else plain, np.sort(rows)


def build(pipeline: str, task: Task, stored: int) -> Iterable[Any]:
    """The loader of a pipeline."""
    if pipeline == "torchvision ImageFolder + v2":
        return torchvision_loader(task.folder, task.size, stored, task.channels)
    if pipeline == "timm create_loader":
        return timm_loader(task.folder, task.size, task.channels)
    return our_loader(*task.faces(), task.size, pipeline.removeprefix("ours, "))


PIPELINES = ("torchvision ImageFolder + v2", "timm create_loader", "ours, albumentations", "ours, batched")


def serve(connection: Connection, pipeline: str, task: Task, stored: int, keep: bool) -> None:
    """Measure an epoch whenever asked: images per CPU-second."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if keep:
        from fer_lightning.runtime.processes import keep_freed_memory

        keep_freed_memory()
    loader = build(pipeline, task, stored)
    while connection.recv():
        connection.send(speed(loader, task.size, task.channels))


@contextmanager
def processes(task: Task, stored: int, same_memory: bool) -> Iterator[dict[str, Connection]]:
    """A process for each pipeline, which waits for its turn."""
    context = multiprocessing.get_context("spawn")
    connections = {}
    for pipeline in PIPELINES:
        keep = same_memory or pipeline.startswith("ours")
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1" if keep else "0"  # as fer_lightning sets it, and PyTorch's default
        connections[pipeline], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, pipeline, task, stored, keep), daemon=True).start()
        theirs.close()
    yield connections
    for connection in connections.values():
        connection.send(False)


def ask(connection: Connection) -> float:
    """One measurement."""
    connection.send(True)
    return float(connection.recv())


def speed(loader: Iterable[Any], size: int, channels: int) -> float:
    """Images per CPU-second over one epoch."""
    images = 0

    def epoch() -> None:
        nonlocal images
        for batch, _ in loader:
            assert tuple(batch.shape[1:]) == (channels, size, size), batch.shape
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
    parser.add_argument("--color", action="store_true", help="drawn faces in colour, stored at each of the sizes")
    parser.add_argument(
        "--same-memory", action="store_true", help="keep memory as a run of ours does, in all processes"
    )
    arguments = parser.parse_args()
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            task = Task(arguments.data, arguments.images, arguments.color, size, Path(name))
            faces, rows = task.faces()
            write_folder(faces, rows, task.folder)
            data = "FER-2013" if not faces.synthetic else "drawn faces in colour" if arguments.color else "drawn faces"
            with processes(task, faces.form.size, arguments.same_memory) as connections:
                turns = {pipeline: partial(ask, connection) for pipeline, connection in connections.items()}
                found = alternate(turns, arguments.rounds)
            ours = median(found["ours, batched"])
            table = [[name, median(values), spread(values), ours / median(values)] for name, values in found.items()]
            show(
                f"data path, {len(rows):,} images of {data} at {size} px, batches of {BATCH}",
                ["pipeline", "images per CPU-second", "range", "batched is faster by"],
                table,
            )


if __name__ == "__main__":
    main()
