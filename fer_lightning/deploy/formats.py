"""The formats that a model is exported to: one function writes a file, one opens it again to answer."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.deploy.graph import Deployable, as_faces, as_strings
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import build_head

Answer = Callable[[np.ndarray], np.ndarray]
"""An opened file: uint8 images (B, H, W, 3), red, green, blue, to float32 probabilities (B, 7)."""

DESCRIPTION = "description.json"
"""The extra file that holds the description, in formats that are archives."""

WEIGHTS_INPUT = "float32 (batch, in_channels, image_size, image_size): (gray / 255 - mean) / std of a resized face"
WEIGHTS_OUTPUT = "weights alone; the network they belong to gives logits (batch, 7), softmax of logits / temperature"

_EXAMPLE = (2, 60, 52, 3)
"""A shape none of whose dynamic sizes is 1, equal to another, or 48: exporters specialise on such coincidences."""


def write(model: EmotionClassifier, temperature: float, description: dict[str, Any], name: str, path: Path) -> None:
    """Write a model in one format.

    Args:
        model: the trained classifier.
        temperature: see ``Deployable``; safetensors holds weights alone and leaves it to its reader.
        description: see ``deploy.describe``; goes into the file's metadata.
        name: a key of ``export.SUFFIXES``.
        path: of the file.
    """
    if name == "safetensors":
        weights = {key: value.contiguous() for key, value in model.network.state_dict().items()}
        save_file(weights, path, metadata=as_strings({**description, "input": WEIGHTS_INPUT, "output": WEIGHTS_OUTPUT}))
        return
    deployable = Deployable(model, temperature).eval()
    example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    sizes = {axis: torch.export.Dim(size) for axis, size in enumerate(("batch", "height", "width"))}
    extra = {DESCRIPTION: json.dumps(description, indent=1)}
    if name == "onnx":
        _write_onnx(deployable, example, sizes, description, path)
    elif name == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, which the documentation says
            torch.jit.trace(deployable, example, check_trace=False).save(str(path), _extra_files=extra)
    else:
        program = torch.export.export(deployable, (example,), dynamic_shapes={"images": sizes})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, path, extra_files=extra)


def _write_onnx(
    deployable: nn.Module, example: torch.Tensor, sizes: dict[int, Any], description: dict[str, Any], path: Path
) -> None:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployable,
            (example,),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": sizes},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        part.ClearField("metadata_props")  # stack traces, with paths of this machine
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)
    set_description(path, description)


def set_description(path: Path, description: dict[str, Any]) -> None:
    """Write a description into the metadata of an ONNX file."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, as_strings(description))
    onnx.save(graph, path)


def open_again(name: str, path: Path, model: EmotionClassifier, temperature: float) -> Answer:
    """Open an exported file the way its users do.

    Args:
        name: a key of ``export.SUFFIXES``.
        path: of the file.
        model: where the configuration of the network, not of the weights, is taken from; for safetensors alone.
        temperature: likewise.
    """
    if name == "onnx":
        return open_onnx(path)
    if name == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_answer(torch.jit.load(str(path)))
    if name == "exported_program":
        return torch_answer(torch.export.load(path).module())
    return torch_answer(_rebuilt(path, model, temperature))


def open_onnx(path: Path, threads: int = 0) -> Answer:
    """An ONNX file in onnxruntime, on the CPU with so many threads; 0 leaves the choice to it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(images: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"images": images})[0]

    return answer


def torch_answer(module: Callable[[torch.Tensor], torch.Tensor]) -> Answer:
    """A module of PyTorch that takes and returns tensors."""

    @torch.inference_mode()
    def answer(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return answer


def _rebuilt(path: Path, model: EmotionClassifier, temperature: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The backbone read by timm alone, as the README shows, and the head from the same file."""
    architecture = model.hparams["model"]
    channels, size = architecture["in_channels"], architecture["image_size"]
    timm_logger = logging.getLogger("timm")
    level = timm_logger.level
    timm_logger.setLevel(logging.ERROR)  # it warns that the head's weights are left over, which they should be
    try:
        backbone: Any = timm.create_model(
            architecture["name"],
            pretrained=True,
            in_chans=channels,
            num_classes=0,
            pretrained_cfg_overlay={"file": str(path), "input_size": (channels, size, size)},
        ).eval()
    finally:
        timm_logger.setLevel(level)
    backbone.conv_stem.stride = (architecture["stem_stride"],) * 2
    head = build_head(backbone.num_features, len(EMOTIONS), **architecture["head"]).eval()
    prefix = "classifier."
    head.load_state_dict({k.removeprefix(prefix): w for k, w in load_file(path).items() if k.startswith(prefix)})

    def answer(images: torch.Tensor) -> torch.Tensor:
        logits = head(backbone(model.prepare(as_faces(images), size)))
        return torch.softmax(logits / temperature, dim=1)

    return answer
