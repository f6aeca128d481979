"""The Hydra callback that validates a run before its folder exists."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from yaml import YAMLError

from fer_lightning.config.command_line import one_line_errors
from fer_lightning.config.hydra_keys import RECORD, check_file_names, check_named
from fer_lightning.config.interpolations import as_hydras
from fer_lightning.config.safety import recorded
from fer_lightning.config.same_training import check_same_training
from fer_lightning.config.schema import validate
from fer_lightning.config.secrets import check_secrets, without_secrets
from fer_lightning.config.settings import without_hydra
from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.runtime.errors import UserError, require
from fer_lightning.runtime.files import real_path
from fer_lightning.runtime.folder_lock import lock_for_run
from fer_lightning.runtime.processes import is_first_process
from fer_lightning.runtime.run_folder import holds_training, keep_record, read_status, recorded_file, write_status


def check_run(config: DictConfig) -> None:
    """Check a run before its folder is made or written to.

    Args:
        config: composed, with the ``hydra`` node; its ``hydra.run.dir`` is the run folder.

    Raises:
        UserError: see ``schema.validate``; or the folder holds a run that is not resumed, or one with other settings,
            or is in use.
    """
    run = without_hydra(config)
    if config.hydra.job.chdir:
        raise UserError("hydra.job.chdir=true: paths are relative to the folder you start in; leave it false")
    validate(run, config.hydra.runtime.choices, config.hydra.searchpath)
    with as_hydras(config):
        check_named(config.hydra.run.dir, "hydra.run.dir")
        folder = Path(config.hydra.run.dir)
        check_file_names(config.hydra.job.name, config.hydra.output_subdir)
    if config.hydra.output_subdir is None and is_first_process():  # others than the first have none
        raise UserError(
            f"hydra.output_subdir=null: a run without its configuration in {RECORD} could not be compared; leave it out"
        )
    check_secrets([("hydra.run.dir", str(folder)), ("hydra.job.name", config.hydra.job.name)])
    if is_first_process() and folder.is_dir():
        lock = lock_for_run(folder, run.resume)
        try:
            if run.resume is not None and holds_training(folder):
                _check_resumed(run, folder, config.hydra.output_subdir)
        except UserError as mistake:
            if read_status(folder)["status"] == "running":  # killed, or a job whose sweep reads the reason here
                write_status(folder, "failed", without_secrets(str(mistake)))
            raise
        finally:
            lock.release()  # the run takes it again


def _check_resumed(run: DictConfig, folder: Path, record: str | None) -> None:
    """Check that a run has the settings of the one that it resumes, and keep the record of those, which is replaced.

    Args:
        run: the composed run.
        folder: the run folder; locked.
        record: ``hydra.output_subdir``; None to write no record.

    Raises:
        UserError: see ``check_same_training``; or a rehearsal, or another run's training, in the place of a training.
    """
    if run.resume != "auto" and not real_path(run.resume).is_relative_to(real_path(folder)):
        raise UserError(
            f"hydra.run.dir={folder}: holds a training, which that of resume={run.resume} would replace; give "
            "resume=auto, or choose another folder"
        )
    rehearsal = run.trainer.fast_dev_run
    accepted = (
        f"a rehearsal saves nothing, and {folder} holds a training; leave it out, or choose another hydra.run.dir"
    )
    require(not rehearsal, "trainer.fast_dev_run", rehearsal, accepted)
    if record is None:
        return
    if run.resume == "auto":
        file = recorded_file(folder, f"{record}/config.yaml")
        try:
            trained = recorded(read_yaml(file), str(file))
        except (FileNotFoundError, UserError, YAMLError):
            trained = None  # the checkpoint has the settings too
        if trained is not None:
            check_same_training(run, trained)
    keep_record(folder, record)


class Validate(Callback):
    """Hydra callback that validates before the run folder is created, so that a typo leaves no folder behind."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with one_line_errors():  # Hydra only warns of a callback's exceptions, but lets SystemExit pass
            check_run(config)
