"""Static int8 quantisation of an exported ONNX graph, calibrated on validation images."""

import contextlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fer_lightning.deploy.graph import as_colour

CALIBRATION_IMAGES = 512
BATCH = 64
FLOAT_CONVOLUTIONS = 2
"""The first ones, which stay in float32: nearest to the pixels, they have few channels and much to lose."""
PERCENTILE = 99.99
"""Share of the activations that their int8 range covers. SiLU has long tails: a range to the very largest wastes it."""


def quantize(source: Path, target: Path, images: np.ndarray) -> None:
    """Write a graph whose convolutions but the first compute in int8; the rest, head and softmax too, stays in float32.

    Weights have a scale per output channel, activations one per tensor (QDQ).

    Args:
        source: an exported ONNX file.
        target: the file to write.
        images: uint8, (n, 48, 48), gray, to calibrate on: not those that the model is tested on.
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

    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        quantization.quantize_static(
            prepared,
            target,
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=convolutions[:FLOAT_CONVOLUTIONS],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            # One batch after the other: it keeps every activation of what it collects at a time.
            extra_options={"CalibPercentile": PERCENTILE, "CalibStridedMinMax": 1},
        )
