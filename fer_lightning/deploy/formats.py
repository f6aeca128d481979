"""Export formats: ``write`` writes a file, ``open_exported`` opens it again to predict."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save
from torch import nn

from fer_lightning.deploy.graph import Deployable, as_faces, as_strings
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import build_head, head_name

Predictor = Callable[[np.ndarray], np.ndarray]
"""An opened file: from uint8 images (B, H, W, 3) in RGB order to float32 probabilities (B, C)."""

METADATA_FILE = "description.json"
"""Name of the file with the metadata inside an exported program."""

WEIGHTS_INPUT = "float32 (batch, in_channels, image_size, image_size): (gray / 255 - mean) / std of a resized face"
WEIGHTS_OUTPUT = "weights alone; their network returns logits (batch, C): take the softmax of logits / temperature"

_EXAMPLE = (2, 60, 52, 3)
"""Example input: no dynamic size is 1, 48 or equal to another, since exporters specialise on such sizes."""


def write(model: EmotionClassifier, temperature: float, metadata: dict[str, Any], name: str, path: Path) -> None:
    """Write a model in one format.

    Args:
        model: the trained classifier.
        temperature: see ``Deployable``; a safetensors file holds only weights, so its reader applies it.
        metadata: from ``graph.export_metadata``; stored in the file.
        name: a key of ``request.SUFFIXES``.
        path: of the file.
    """
    if name == "safetensors":
        weights = {key: value.contiguous() for key, value in model.network.state_dict().items()}
        about = as_strings({**metadata, "input": WEIGHTS_INPUT, "output": WEIGHTS_OUTPUT})
        path.write_bytes(save(weights, metadata=about))
        return
    deployable = Deployable(model, temperature).eval()
    example = torch.zeros(_EXAMPLE, dtype=torch.uint8)
    sizes = {axis: torch.export.Dim(size) for axis, size in enumerate(("batch", "height", "width"))}
    if name == "onnx":
        _write_onnx(deployable, example, sizes, metadata, path)
    else:
        program = torch.export.export(deployable, (example,), dynamic_shapes={"images": sizes})
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # contains local paths
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata, indent=1)})


def _write_onnx(
    deployable: nn.Module, example: torch.Tensor, sizes: dict[int, Any], metadata: dict[str, Any], path: Path
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
        part.ClearField("metadata_props")  # stack traces, which contain local paths
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)
    set_metadata(path, metadata)


def set_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Replace the metadata of an ONNX file."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, as_strings(metadata))
    onnx.save(graph, path)


def open_exported(name: str, path: Path, model: EmotionClassifier, temperature: float) -> Predictor:
    """Open an exported file the way its users do.

    Args:
        name: a key of ``request.SUFFIXES``.
        path: of the file.
        model: gives the architecture, not the weights; used for safetensors only.
        temperature: calibrates the probabilities; used for safetensors only.
    """
    if name == "onnx":
        return open_onnx(path)
    if name == "exported_program":
        return torch_predictor(torch.export.load(path).module())
    return torch_predictor(_rebuild(path, model, temperature))


def open_onnx(path: Path, threads: int = 0) -> Predictor:
    """Open an ONNX file in onnxruntime, on the CPU with ``threads`` threads; 0 lets onnxruntime choose."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"images": images})[0]

    return predict


def torch_predictor(module: Callable[[torch.Tensor], torch.Tensor]) -> Predictor:
    """Wrap a PyTorch module, which takes and returns tensors."""

    @torch.inference_mode()
    def predict(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return predict


def _rebuild(path: Path, model: EmotionClassifier, temperature: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Read the backbone with timm alone, as the documentation shows, and the head from the same file."""
    architecture = model.hparams["model"]
    channels, size = architecture["in_channels"], architecture["image_size"]
    timm_logger = logging.getLogger("timm")
    level = timm_logger.level
    timm_logger.setLevel(logging.ERROR)  # it warns about the unused weights of the head
    try:
        backbone: Any = timm.create_model(
            architecture["name"],
            pretrained=True,
            in_chans=channels,
            num_classes=0,
            **({"img_size": size} if model.network.pretrained_cfg.get("fixed_input_size") else {}),
            pretrained_cfg_overlay={"file": str(path), "input_size": (channels, size, size)},
        ).eval()
    finally:
        timm_logger.setLevel(level)
    if architecture["stem_stride"] is not None:
        backbone.get_submodule(backbone.pretrained_cfg["first_conv"]).stride = (architecture["stem_stride"],) * 2
    head = build_head(backbone.head_hidden_size, len(model.classes), **architecture["head"]).eval()
    prefix = f"{head_name(model.network)}."
    head.load_state_dict({k.removeprefix(prefix): w for k, w in load_file(path).items() if k.startswith(prefix)})

    def predict(images: torch.Tensor) -> torch.Tensor:
        logits = head(backbone(model.prepare(as_faces(images, model.form), size)))
        return torch.softmax(logits / temperature, dim=1)

    return predict
