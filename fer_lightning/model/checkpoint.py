"""Reading a checkpoint safely, and writing one atomically."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file_by

HYPER_PARAMETERS = {"model", "optim", "class_counts", "config", "provenance", "adjusted", "scorecard"}
"""What every checkpoint holds of its model; see ``EmotionClassifier``."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    Raises:
        UserError: when the file is missing, no checkpoint of this project, or needs unsafe loading.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give a run's checkpoints/best.ckpt")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch does not verify the checksums
                raise zipfile.BadZipFile(f"{damaged} has the wrong checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each raise their own
        if type(error).__name__ == "UnpicklingError":
            raise UserError(f"{path}: would run code when it is loaded, and is refused") from error
        raise UserError(f"{path}: no checkpoint, or a damaged one; give a run's checkpoints/best.ckpt") from error
    hyper = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if "state_dict" not in (checkpoint if hyper else ()) or not set(hyper or ()) >= HYPER_PARAMETERS:
        raise UserError(f"{path}: not a checkpoint of fer_lightning (its hyper-parameters are missing)")
    return checkpoint


def write_checkpoint(path: Path, checkpoint: dict[str, Any], keep: Path | None = None) -> None:
    """Write a checkpoint so that it appears whole or not at all; ``keep`` as in ``replace_file``."""
    replace_file_by(path, lambda file: torch.save(checkpoint, file), keep)
