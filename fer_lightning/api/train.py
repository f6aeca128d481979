"""``fl.train``: one run in this process, as the command line makes it."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fer_lightning.api.run import Run
from fer_lightning.config.compose import composed
from fer_lightning.config.settings import without_hydra
from fer_lightning.runtime import signals, slurm_task
from fer_lightning.runtime.errors import Interrupted, UserError
from fer_lightning.runtime.files import as_path, make_folder
from fer_lightning.runtime.processes import device_count, is_first_process

PACKAGE = logging.getLogger("fer_lightning")

_BUSY = threading.Lock()


def train(overrides: Sequence[str] = (), *, folder: str | Path | None = None) -> Run:
    """Train, test once, and write a run folder: ``python -m fer_lightning`` in this process, with the same numbers.

    The run's messages go to ``train.log`` in its folder and to the logger ``fer_lightning``; where Python's logging is
    not configured, they are printed. Random generators are seeded; nothing of Hydra's is left behind.

    Args:
        overrides: ``key=value`` of the configuration, as on the command line; all keys have defaults.
        folder: the run folder; default ``outputs/<name>/<time>``.

    Returns:
        The finished run.

    Raises:
        UserError: what the command line refuses, in one line; several values for a key, several devices, or a second
            run while another one is being trained in this process. A failed run's reason is also in its
            ``status.json``.
        KeyboardInterrupt: as usual; the run is saved and can be resumed.
        Interrupted: the same for SIGTERM, SIGUSR1 and SIGUSR2, if this is the main thread.

    Examples:
        >>> run = fl.train(["data.path=fer2013.zip", "imbalance=focal", "trainer.max_epochs=5"])
        >>> run.metrics["test/f1_macro"]
        >>> fl.train(["data.path=fer2013.zip", "imbalance=focal", "resume=auto"], folder=run.folder)
    """
    if not _BUSY.acquire(blocking=False):
        raise UserError("this process is training a run already; wait for it, or start another process")
    try:
        with composed(overrides, None if folder is None else as_path(folder, "folder")) as cfg:
            return _train(cfg)
    finally:
        _BUSY.release()


def _train(cfg: DictConfig) -> Run:
    _refuse_processes(cfg.trainer)
    if cfg.trainer.fast_dev_run:
        raise UserError(
            f"trainer.fast_dev_run={cfg.trainer.fast_dev_run}: a rehearsal has no results to return; "
            "use trainer.max_epochs=1, or python -m fer_lightning"
        )
    from fer_lightning.training.run import run  # imports torch: mistakes are reported before

    folder = Path(cfg.hydra.runtime.output_dir)
    job = without_hydra(cfg)
    _begin_folder(cfg, job, folder)
    log_format = OmegaConf.select(cfg, "hydra.job_logging.formatters.file.format")
    try:
        with _logged(folder / f"{cfg.hydra.job.name}.log", log_format), _stopped_by_signals():
            run(job, folder)
    except (Interrupted, KeyboardInterrupt) as stopped:
        stopped.add_note(f"resume with the override resume=auto and folder={str(folder)!r}")
        raise
    return Run(folder)


def _refuse_processes(trainer: DictConfig) -> None:
    """Check that one process is enough: Lightning starts further ones with the caller's command line.

    Raises:
        UserError: several devices or nodes, or this process is one of several.
    """
    if not is_first_process() or slurm_task.tasks() > 1:
        raise UserError("this process is one of several that torchrun or srun started; start it alone")
    devices = device_count(trainer.devices)
    if devices is None and trainer.accelerator in ("auto", "gpu", "cuda"):
        import torch

        devices = torch.cuda.device_count()
    for key, what, count in (("devices", "devices", devices or 1), ("num_nodes", "nodes", trainer.num_nodes)):
        if count > 1:
            raise UserError(
                f"trainer.{key}={trainer[key]}: several {what} need several processes, and this is one; "
                f"set trainer.{key}=1, or run python -m fer_lightning"
            )


def _begin_folder(cfg: DictConfig, job: DictConfig, folder: Path) -> None:
    """Make the folder with the record of the configuration that Hydra writes for the command line."""
    record = folder / cfg.hydra.output_subdir
    for each in (folder, record):
        make_folder(each)
    hydra = OmegaConf.masked_copy(cfg, ["hydra"])
    for name, content in (("config", job), ("hydra", hydra), ("overrides", cfg.hydra.overrides.task)):
        (record / f"{name}.yaml").write_text(OmegaConf.to_yaml(content), encoding="utf-8")


@contextmanager
def _logged(file: Path, log_format: str | None) -> Iterator[None]:
    """Write messages to ``file``, and to the terminal where logging is not configured; removed afterwards."""
    root, level = logging.getLogger(), PACKAGE.level
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter(log_format))
    if not root.hasHandlers():
        handlers.append(logging.StreamHandler(sys.stdout))
    if level == logging.NOTSET:
        PACKAGE.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        PACKAGE.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Save and stop on a signal; afterwards the caller's handlers are back. Other threads than the first get none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
