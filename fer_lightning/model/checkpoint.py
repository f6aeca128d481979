"""Reading a checkpoint safely."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from fer_lightning.runtime.errors import UserError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    Raises:
        UserError: when the file is missing, no checkpoint of this project, or needs unsafe loading.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give a run's checkpoints/best.ckpt")
    try:
        with zipfile.ZipFile(path) as archive:
            if torn := archive.testzip():  # torch does not look at the checksums
                raise zipfile.BadZipFile(f"{torn} has the wrong checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        if type(error).__name__ == "UnpicklingError":
            raise UserError(f"{path}: would run code when it is loaded, and is refused") from error
        raise UserError(f"{path}: no checkpoint, or a damaged one; give a run's checkpoints/best.ckpt") from error
    hyper = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    wanted = {"model", "optim", "class_counts", "config", "provenance"}
    if "state_dict" not in (checkpoint if hyper else ()) or not wanted <= set(hyper or ()):
        raise UserError(f"{path}: not a checkpoint of fer_lightning (its hyper-parameters are missing)")
    return checkpoint
