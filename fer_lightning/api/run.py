"""A run on disk, whether ``fl.train`` or the command line made it."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fer_lightning.metrics.predictions import read_predictions_csv
from fer_lightning.presentation.escapes import table_from_csv
from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import as_path, read_bytes, read_json
from fer_lightning.runtime.run_folder import read_status, tested_checkpoint


class Run:
    """A run folder; its files are read when they are accessed.

    Args:
        folder: with the run's ``status.json``.

    Raises:
        UserError: not a run folder.

    Examples:
        >>> run = fl.Run("outputs/fer2013/2026-01-31_12-00-00-000000")
        >>> run.metrics["test/accuracy"]
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = as_path(folder, "folder")
        if not (self.folder / "status.json").is_file():
            raise UserError(f"{self.folder}: not a run folder (it has no status.json); give outputs/NAME/TIME of a run")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def status(self) -> str:
        """``done``, ``running``, ``failed``, ``interrupted`` or ``stopped``."""
        return str(read_status(self.folder)["status"])

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``: scores under ``<test set>/<metric>``, and what identifies the run.

        Raises:
            UserError: the run is not finished.
        """
        return read_json(self._finished("metrics.json"))

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """``predictions.csv``: one row per image of any test set.

        Columns ``id``, ``usage``, ``label``, ``prediction``, ``p_<class>`` (not calibrated), ``twin_group``, and one of
        0 and 1 for each test set.

        Raises:
            UserError: the run is not finished, or the file is damaged.
        """
        file = self._finished("predictions.csv")
        try:
            return table_from_csv(read_predictions_csv(read_bytes(file)))
        except ValueError as error:  # all that pandas raises for what is not a csv
            raise UserError(f"{file}: damaged ({shortened(one_line(error), 300)}); test the run again") from None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that was tested: ``best.ckpt``, or ``last.ckpt`` where no validation chose one.

        Raises:
            UserError: the run has none.
        """
        return tested_checkpoint(self.folder)

    def _finished(self, name: str) -> Path:
        status = read_status(self.folder)
        file = self.folder / name
        if status["status"] != "done" or not file.is_file():
            reason = f": {status['reason']}" if status.get("reason") else ""
            raise UserError(
                f"{self.folder}: has no {name} (the run is {status['status']}{reason}); "
                "resume it with resume=auto, or give a finished run"
            )
        return file
