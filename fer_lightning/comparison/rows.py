"""Which runs may be compared, and with which: rows of a comparison, their baselines, and pairs by seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fer_lightning.comparison.runs import FinishedRun
from fer_lightning.imbalance.combinations import weights_by_hand
from fer_lightning.runtime.errors import UserError

BASELINE = "none"
"""The method that differences are taken from, if there is such a run and no other method is given."""

OWN_TEST_SETS = ("paper", "kfold")
"""Splits whose test images depend on the seed or fold."""

Rows = Mapping[str, Sequence[FinishedRun]]
"""Row name -> its runs."""


def primary_test_set(run: FinishedRun) -> str:
    """The test set that runs of this one's split are compared on: every method on the same images."""
    return "test_large" if run.metrics["split"] == "paper" else "test"


def refuse_incomparable(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs that differ in more than their methods.

    Raises:
        UserError: data, labels or split differ, or runs with the same seed were tested on different images, labels or
            twins.
    """
    first, test_set = runs[0], primary_test_set(runs[0])
    for run in runs[1:]:
        for what, value in run.protocol.items():
            if value != first.protocol[what]:
                raise _refusal(first, run, what, first.protocol[what], value)
    lacking = [run for run in runs if test_set not in run.members]
    if lacking:
        raise UserError(
            f"{lacking[0].name} was not tested on {test_set}, on which split={first.metrics['split']} is compared "
            f"({len(lacking)} of {len(runs)} runs); leave it out, or run it again"
        )
    references: dict[Any, FinishedRun] = {}
    for run in runs:
        reference = references.setdefault(run.repeat if first.metrics["split"] in OWN_TEST_SETS else None, run)
        mine, its = run.members[test_set], reference.members[test_set]
        if not np.array_equal(run.ids[mine], reference.ids[its]):
            shared = len(np.intersect1d(run.ids[mine], reference.ids[its]))
            counts = f"{mine.sum():,}, {shared:,} of them the same"
            raise _refusal(reference, run, f"test images ({test_set})", f"{its.sum():,}", counts)
        if (others := int((run.labels[mine] != reference.labels[its]).sum())) > 0:
            raise _refusal(
                reference, run, "labels of the test images", f"{its.sum():,}", f"{others:,} of them different"
            )
        if (others := int((run.twins[mine] != reference.twins[its]).sum())) > 0:
            raise _refusal(
                reference, run, "twins of the test images", f"{its.sum():,}", f"{others:,} with another twin_group"
            )


def _refusal(first: FinishedRun, other: FinishedRun, what: str, its: str, others: str) -> UserError:
    return UserError(
        f"{first.name} and {other.name} cannot be compared: they differ in {what} ({its}; {others}); "
        "give only the folders of runs that share it, and compare the others by themselves"
    )


def named_rows(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Sort runs into named rows: one per method, model and combination of settings that vary within them.

    Class weights by hand are in the name in any case: they make another method of it. So is what thins the training
    images, where that is not the same in all runs.
    """
    several_models = len({run.metrics["model"] for run in runs}) > 1
    thinned = {key for key in varying([run.settings for run in runs]) if key in IMBALANCE}
    methods: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    rows: dict[str, list[FinishedRun]] = {}
    for (imbalance, model), members in methods.items():
        differing = thinned.union(varying([run.settings for run in members]))
        for run in members:
            parts = [model] if several_models else []
            values = {key: run.settings.get(key) for key in differing} | weights_by_hand(imbalance, run.settings)
            named = (f"{key.rsplit('.', 1)[-1]}={value}" for key, value in sorted(values.items()) if _names(key, value))
            parts += named
            rows.setdefault(" ".join([imbalance, *parts]), []).append(run)
    return rows


def _names(key: str, value: str | None) -> bool:
    """Whether a setting says something of a run: not a class weight by hand or a thinning that it does not have."""
    by_hand = key == "imbalance.loss.power" or key.startswith("imbalance.loss.weights")
    return not (by_hand or key in IMBALANCE) or value is not None


def varying(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings that are not the same in all runs."""
    keys = sorted(set().union(*settings))
    return [key for key in keys if len({setting.get(key) for setting in settings}) > 1]


IMBALANCE = ("split.ratio", "split.profile", "split.total", "split.order")
"""Settings that thin the training images. An arm of the paper has a subset of its own, and is compared all the same."""


def find_baselines(rows: Rows, wanted: str | None) -> dict[str, str]:
    """The baseline of each row that has one.

    It is the row called ``wanted``, or of that method with the same model; where a sweep over a setting gives several,
    the one whose settings outside ``imbalance`` are the same.

    Args:
        rows: the rows.
        wanted: a method or a row; None: ``none``, or the first method where there is no such run.

    Returns:
        Row -> row, baselines to themselves; empty for a single row.

    Raises:
        UserError: nothing is called ``wanted``.
    """
    methods = list(dict.fromkeys(members[0].metrics["imbalance"] for members in rows.values()))
    accepted = list(dict.fromkeys([*methods, *rows]))
    if wanted is not None and wanted not in accepted:
        raise UserError(f"baseline {wanted}: no run has this method or row; accepted: {', '.join(accepted)}")
    if len(rows) == 1:
        return {}
    if wanted is None:
        wanted = BASELINE if BASELINE in methods else methods[0]
        if len(methods) == 1 and wanted not in rows:
            wanted = next(iter(rows))  # several settings of one method: the first of them
    candidates = [wanted] if wanted in rows else [name for name in rows if rows[name][0].metrics["imbalance"] == wanted]
    baselines: dict[str, str] = {}
    for name in rows:
        fitting = [name] if name in candidates else [each for each in candidates if _fits(rows[each][0], rows[name][0])]
        if len(fitting) > 1:
            fitting = [each for each in fitting if _outside(rows[each][0]) == _outside(rows[name][0])]
        if len(fitting) == 1:
            baselines[name] = fitting[0]
    return baselines


def _fits(baseline: FinishedRun, run: FinishedRun) -> bool:
    """Whether a difference is one of the method: the same model, and training images of the same imbalance."""
    same_model = baseline.metrics["model"] == run.metrics["model"]
    return bool(same_model and all(baseline.settings.get(key) == run.settings.get(key) for key in IMBALANCE))


def _outside(run: FinishedRun) -> dict[str, str]:
    return {key: value for key, value in run.settings.items() if not key.startswith("imbalance.")}


def paired(members: Sequence[FinishedRun], others: Sequence[FinishedRun]) -> list[tuple[FinishedRun, FinishedRun]]:
    """Runs of two rows with the same seed and fold."""
    partners = {run.repeat: run for run in others}
    return [(run, partners[run.repeat]) for run in members if run.repeat in partners]


def is_tested(runs: Sequence[FinishedRun], test_set: str) -> bool:
    """Whether all runs have this test set."""
    return all(test_set in run.members for run in runs)


def common_test_sets(runs: Sequence[FinishedRun]) -> list[str]:
    """Test sets that all runs have; of the paper's arms, ``test`` is another name for different ones."""
    names = [name for name in runs[0].members if is_tested(runs, name)]
    return [name for name in names if runs[0].metrics["split"] != "paper" or name not in ("test", "test_dedup")]


def share_images(runs: Sequence[FinishedRun], test_set: str) -> bool:
    """Whether all runs were tested on the same images."""
    first = runs[0].ids[runs[0].members[test_set]]
    return all(np.array_equal(run.ids[run.members[test_set]], first) for run in runs)
