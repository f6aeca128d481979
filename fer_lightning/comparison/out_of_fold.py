"""Out-of-fold probabilities: of each image, from the run of a cross-validation that tested on it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fer_lightning.comparison.rows import named_rows
from fer_lightning.comparison.runs import FinishedRun, find_runs, read_runs
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutOfFold:
    """The probabilities of models that were neither trained nor selected on the image.

    Attributes:
        ids: str, (n,), in ascending order.
        labels: int64, (n,), as the runs were trained with.
        probabilities: float64, (n, C), the mean over seeds.
        runs: the runs they are from, at least one.
    """

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    runs: tuple[FinishedRun, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.runs[0].classes

    @property
    def folds(self) -> str:
        """The folds of each seed, in words: ``folds 0, 1, 3 of 5``."""
        by_seed: dict[int, set[int]] = {}
        for run in self.runs:
            by_seed.setdefault(run.metrics["seed"], set()).add(int(run.fold or 0))
        words = {seed: ", ".join(map(str, sorted(folds))) for seed, folds in by_seed.items()}
        count = self.runs[0].settings.get("split.folds")
        parts = [f"folds {each} of {count}" for each in dict.fromkeys(words.values())]
        return " and ".join(parts) + (f", {len(by_seed)} seeds" if len(by_seed) > 1 else "")


def read_out_of_fold(paths: Sequence[str | Path]) -> OutOfFold:
    """Collect the test predictions of a cross-validation's runs.

    Args:
        paths: folders of runs or sweeps, with ``split=kfold`` and one setting. Folds may be missing: then some images
            have no probabilities. Several seeds are several cross-validations, whose probabilities are averaged.

    Raises:
        UserError: no finished run; runs of another split, or of several settings; folds that do not agree.
    """
    runs, skipped = read_runs(find_runs(paths))
    for folder, reason in skipped.items():
        log.info("left out: %s: %s", folder, reason)
    given = ", ".join(map(str, paths))
    if not runs:
        raise UserError(f"{given}: has no finished run (see above); give the folder of a sweep with split=kfold")
    _check_folds_agree(runs, given)
    names = np.concatenate([run.ids[run.members["test"]] for run in runs])
    labels = np.concatenate([run.labels[run.members["test"]] for run in runs])
    tested = np.concatenate([run.probabilities[run.members["test"]] for run in runs])
    ids, first, place, count = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    if (labels != labels[first][place]).any():
        image = names[np.flatnonzero(labels != labels[first][place])[0]]
        raise UserError(f"{given}: its folds do not agree: {image} has two labels; give runs on the same data")
    sums = np.zeros((len(ids), tested.shape[1]))
    np.add.at(sums, place, tested)
    return OutOfFold(ids, labels[first], sums / count[:, None], tuple(runs))


def _check_folds_agree(runs: Sequence[FinishedRun], given: str) -> None:
    """Check that the runs are parts of one cross-validation for each seed.

    Raises:
        UserError: they are not.
    """
    first = runs[0]
    if others := [run for run in runs if run.metrics["split"] != "kfold"]:
        raise UserError(
            f"{others[0].name}: has split={others[0].metrics['split']}, whose training images have no out-of-fold "
            "probabilities; give runs with split=kfold, such as split=kfold 'split.fold=range(5)'"
        )
    for run in runs:
        for what, value in run.protocol.items():
            if value != first.protocol[what]:
                raise UserError(
                    f"{given}: its folds do not agree: {first.name} and {run.name} differ in {what} "
                    f"({first.protocol[what]}; {value}); give the runs of one cross-validation"
                )
    if len(rows := list(named_rows(runs))) > 1:
        raise UserError(
            f"{given}: has runs of {len(rows)} settings ({', '.join(rows[:4])}); give the run folders of one, each "
            "with --label-errors"
        )
    seen: dict[int, set[str]] = {}
    for run in runs:
        mine, of_seed = set(run.ids[run.members["test"]].tolist()), seen.setdefault(run.metrics["seed"], set())
        if shared := mine & of_seed:
            raise UserError(
                f"{given}: its folds do not agree: {run.name} tests {len(shared):,} images that another fold of seed "
                f"{run.metrics['seed']} tests; give the runs of one cross-validation"
            )
        of_seed |= mine
