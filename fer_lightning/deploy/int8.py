"""Static int8 quantisation of an exported ONNX graph, calibrated on validation images."""

import contextlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import Split
from fer_lightning.deploy.graph import as_colour

CALIBRATION_IMAGES = 512
BATCH = 64
FLOAT_CONVOLUTIONS = 2
"""Number of first convolutions kept in float32: close to the pixels, with few channels, they lose most precision."""
PERCENTILE = 99.99
"""Percentile of the activations covered by the int8 range; SiLU's long tail would waste a range up to the maximum."""


def calibration_images(faces: Faces, split: Split) -> np.ndarray:
    """Up to ``CALIBRATION_IMAGES`` validation images, the same ones every time: uint8, (n, H, H) or (n, 3, H, H)."""
    return faces.images[np.sort(np.random.default_rng(0).permutation(split.val)[:CALIBRATION_IMAGES])]


def quantize(source: Path, target: Path, images: np.ndarray, networks: int = 1) -> None:
    """Write a graph whose convolutions, except the first ones, compute in int8; everything else stays in float32.

    QDQ format; one scale per output channel for weights, one per tensor for activations.

    Args:
        source: an exported ONNX file.
        target: the file to write.
        images: uint8, (n, H, H) or (n, 3, H, H), to calibrate on; must not be test images.
        networks: how many side by side, each with first convolutions of its own.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(quantization.CalibrationDataReader):
        def __len__(self) -> int:
            return -(-len(images) // BATCH)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.rest = iter(range(start_index, end_index))

        def get_next(self) -> dict[str, np.ndarray] | None:
            number = next(self.rest, None)
            return None if number is None else {"images": as_colour(images[number * BATCH : (number + 1) * BATCH])}

    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # onnxruntime prints its progress
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantization.quantize_static(
            prepared,
            target,
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=first_convolutions(graph, networks),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            # One batch at a time: the calibrator keeps all activations of each range it collects.
            extra_options={"CalibPercentile": PERCENTILE, "CalibStridedMinMax": 1},
        )


def first_convolutions(graph: Any, networks: int) -> list[str]:
    """Names of the convolutions of an ONNX graph that stay in float32.

    Args:
        graph: whose nodes are in the order of computation.
        networks: for one, the first ``FLOAT_CONVOLUTIONS``. The order of several may be any mixture, so of these the
            convolutions with fewer others before them on every path from the input.
    """
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    if networks == 1:
        return convolutions[:FLOAT_CONVOLUTIONS]
    depth: dict[str, int] = {}  # value -> convolutions on the longest path to it
    first = []
    for node in graph.node:
        before = max((depth.get(name, 0) for name in node.input), default=0)
        is_convolution = node.op_type == "Conv"
        if is_convolution and before < FLOAT_CONVOLUTIONS:
            first.append(node.name)
        depth.update(dict.fromkeys(node.output, before + is_convolution))
    return first
