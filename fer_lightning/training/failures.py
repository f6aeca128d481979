"""How a run ended that did not finish: which errors are the user's to correct, and what ``status.json`` records."""

import errno
import logging
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from fer_lightning.config.secrets import without_secrets
from fer_lightning.runtime.errors import Interrupted, Paused, UserError, first_line
from fer_lightning.runtime.processes import device_count
from fer_lightning.runtime.run_folder import write_status
from fer_lightning.training.resume import saved_step

log = logging.getLogger(__name__)


def as_user_error(error: BaseException, cfg: DictConfig, folder: Path) -> UserError | None:
    """The one-line error for what the user can correct, such as too large a batch; None for anything else."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return UserError(_out_of_memory(cfg))
    lost = isinstance(error, torch.distributed.DistBackendError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("closed by peer", "gloo/"))
    )
    if lost:
        return UserError(
            f"another process of this run ended (see its message above); resume with resume=auto hydra.run.dir={folder}"
        )
    if isinstance(error, MisconfigurationException) or "Early stopping conditioned on metric" in str(error):
        return UserError(first_line(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"disk full while writing to {folder}; the last complete checkpoint is kept; "
            "free space or choose another disk with hydra.run.dir=FOLDER"
        )
    return None


def record_failure(error: BaseException, folder: Path) -> None:
    """Write ``interrupted`` or ``failed``, with the reason, to the run folder's ``status.json``.

    A status that cannot be written is a warning: a full disk must not hide the first error.
    """
    try:
        if isinstance(error, Interrupted):
            paused = {"pause_after_epochs": error.epochs} if isinstance(error, Paused) else {}
            write_status(folder, "interrupted", str(error), step=saved_step(folder), **paused)
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            write_status(folder, "interrupted", "stopped by Ctrl-C", step=saved_step(folder))
        else:
            write_status(folder, "failed", without_secrets(first_line(error)))
    except OSError as trouble:
        log.warning("%s: status.json could not be written (%s)", folder, trouble)


def _out_of_memory(cfg: DictConfig) -> str:
    ranks = (device_count(cfg.trainer.devices) or 1) * cfg.trainer.num_nodes
    half = cfg.data.batch_size // 2 // ranks * ranks
    if half == 0:
        return f"out of memory at data.batch_size={cfg.data.batch_size}; use a smaller model.image_size or model"
    sums = cfg.trainer.accumulate_grad_batches * 2
    return (
        f"out of memory at data.batch_size={cfg.data.batch_size}, model.image_size={cfg.model.image_size}; try "
        f"data.batch_size={half} (with trainer.accumulate_grad_batches={sums} for the same steps)"
    )
