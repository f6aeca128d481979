"""Latency and throughput of a checkpoint in PyTorch, in ONNX, and in ONNX with int8, on this CPU.

    python benchmarks/export_latency.py outputs/.../checkpoints/best.ckpt data.path=fer2013.zip

All three get the same pictures, 48x48 in colour, and return calibrated probabilities. Calls alternate between the
three, so that other load on the machine affects all of them.
"""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from measure import alternate, median, show

NAMES = ("PyTorch", "ONNX", "ONNX int8")


def main() -> None:
    """Print one row per engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run's configuration")
    parser.add_argument("--threads", type=int, default=1, help="threads of each engine; default: 1")
    parser.add_argument("--rounds", type=int, default=100, help="calls with one image; a fifth as many with 64")
    arguments = parser.parse_args()

    import torch

    from fer_lightning.deploy import formats
    from fer_lightning.deploy.graph import Deployable, as_colour, export_metadata
    from fer_lightning.deploy.int8 import calibration_images, quantize
    from fer_lightning.evaluation.checkpoint_split import load_split
    from fer_lightning.model.classifier import EmotionClassifier

    torch.set_num_threads(arguments.threads)
    model = EmotionClassifier.load(arguments.checkpoint)
    _, faces, split = load_split(model, arguments.overrides)
    metadata = export_metadata(model)
    temperature = metadata["temperature"] or 1.0
    pictures = as_colour(faces.images[split.tests["test"][:64]])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("float.onnx", "int8.onnx")]
        formats.write(model, temperature, metadata, "onnx", files[0])
        quantize(files[0], files[1], calibration_images(faces, split))
        sizes = [arguments.checkpoint.stat().st_size, *(file.stat().st_size for file in files)]
        predictors = [
            formats.torch_predictor(Deployable(model, temperature).eval().to(memory_format=torch.channels_last)),
            *(formats.open_onnx(file, arguments.threads) for file in files),
        ]
    seconds = {}
    for batch, rounds in ((1, arguments.rounds), (64, arguments.rounds // 5)):

        def call(predict: formats.Predictor, batch: int = batch) -> float:
            before = time.perf_counter()
            predict(pictures[:batch])
            return time.perf_counter() - before

        contestants = {
            name: (lambda predict=predict: call(predict)) for name, predict in zip(NAMES, predictors, strict=True)
        }
        seconds[batch] = {name: median(values) for name, values in alternate(contestants, rounds).items()}
    rows = [
        [
            name,
            1000 * seconds[1][name],
            seconds[1]["PyTorch"] / seconds[1][name],
            64 / seconds[64][name],
            seconds[64]["PyTorch"] / seconds[64][name],
            size / 1e6,
        ]
        for name, size in zip(NAMES, sizes, strict=True)
    ]
    columns = ["engine", "ms, 1 image", "times PyTorch", "images/s, 64", "times PyTorch, 64", "file, MB"]
    title = f"{metadata['model']['name']}, {arguments.threads} thread(s), onnxruntime {version('onnxruntime')}"
    show(title, columns, rows)


if __name__ == "__main__":
    main()
