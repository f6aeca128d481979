"""Report the labels that are probably wrong: tables, ``label_errors.csv``, and a sheet, ``label_errors.png``."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fer_lightning.comparison.out_of_fold import OutOfFold, read_out_of_fold
from fer_lightning.config.interpolations import bounded
from fer_lightning.config.safety import recorded
from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.data.faces import EMOTIONS, SYNONYMS, Faces, class_noun
from fer_lightning.data.ferplus import CATEGORIES, match, plurality, read_votes
from fer_lightning.data.from_config import load_faces
from fer_lightning.evaluation.figures import mistakes
from fer_lightning.metrics.label_errors import LabelErrors, find_label_errors, precision_recall
from fer_lightning.presentation.escapes import table_to_csv
from fer_lightning.presentation.plotting import write_figure
from fer_lightning.presentation.printable import printable, shortened
from fer_lightning.presentation.words import data_name, percent
from fer_lightning.runtime.errors import UserError, first_line, one_line
from fer_lightning.runtime.files import replace_file, replace_file_by

log = logging.getLogger(__name__)

SHOWN = 40
"""Images of the sheet."""

LISTED = (100, 500, 1000, 2000, 5000)
"""Lengths of the ranked list whose precision and recall are printed, besides the whole list."""


@dataclass(frozen=True)
class Judgement:
    """What FER+'s raters say of n labels: a label is wrong where another category has the most votes.

    Attributes:
        voted: str, (n,), the category with the most votes, as a class where it is one; empty for a tie or no votes.
        decided: bool, (n,), whether one category has the most votes.
        wrong: bool, (n,), whether it is not the label; ``contempt``, ``unknown`` and ``no face`` never are.
    """

    voted: np.ndarray
    decided: np.ndarray
    wrong: np.ndarray


def audit_labels(sweeps: Sequence[str], overrides: Sequence[str], out: Path, votes: str | None) -> None:
    """List the probably wrong labels of a cross-validation's data, write both files, and print tables and JSON.

    Args:
        sweeps: folders of the runs; see ``read_out_of_fold``.
        overrides: ``data.path=FILE`` and the like, where the data are no longer where the runs found them.
        out: folder for the files.
        votes: FER+ votes to judge the list by, see ``ferplus.read_votes``; None for none.

    Raises:
        UserError: folds that do not agree, data that cannot be read or are others, or votes that do not fit.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: is a file; give a folder")
    folds = read_out_of_fold(sweeps)
    judged = None if votes is None else judge(folds, votes)
    faces = _load_faces(folds, overrides)
    errors = find_label_errors(folds.probabilities, folds.labels)
    table = label_table(folds, errors, faces, judged)
    _write_files(folds, errors, faces, table, out)
    agreement = float(np.mean(folds.probabilities.argmax(axis=1) == folds.labels))
    console = Console()
    print(
        f"Out-of-fold probabilities of {len(folds.ids):,} of {len(faces):,} images ({folds.folds}); "
        f"{len(table):,} labels are listed ({percent(len(table) / len(folds.ids))}), the most doubtful first; "
        f"the models agree with {percent(agreement)} of all labels",
        flush=True,
    )
    console.print(_classes_table(folds, errors))
    facts: dict[str, Any] = {
        "out": str(out),
        "synthetic": faces.synthetic,
        "images": len(faces),
        "out_of_fold": len(folds.ids),
        "agreement": agreement,
        "listed": len(table),
        "estimated": round(errors.estimated),
    }
    if judged is not None:
        console.print(_votes_table(errors, judged))
        precision, recall = precision_recall(errors.ranked, judged.wrong, judged.decided)
        shares = {"precision": precision, "recall": recall}
        facts |= {key: None if np.isnan(value) else value for key, value in shares.items()}
        facts |= {"wrong_by_votes": int(judged.wrong.sum()), "judged": int(judged.decided.sum())}
    log.info("Wrote %s and %s", out / "label_errors.csv", out / "label_errors.png")
    print(json.dumps(facts), flush=True)


def judge(folds: OutOfFold, path: str) -> Judgement:
    """Judge the labels by FER+'s votes.

    Raises:
        UserError: labels that are not emotions, or are the votes' own; votes that cannot be read, or of other images.
    """
    metrics = folds.runs[0].metrics
    if not set(folds.classes) <= set(EMOTIONS) or metrics["labels"] != "fer":
        what = "labels=ferplus" if metrics["labels"] != "fer" else f"the classes {', '.join(folds.classes)}"
        raise UserError(f"--votes={path}: judges labels of FER-2013, and the runs have {what}; leave --votes out")
    votes = read_votes(path)
    counts = match(votes, folds.ids)
    if not counts.any():
        raise UserError(f"--votes={path}: names images such as {votes.index[0]!r}, and none such as {folds.ids[0]!r}")
    chosen = plurality(counts)
    categories = [*(SYNONYMS.get(name, name) for name in CATEGORIES[:-1]), "no face", ""]  # -1 is a tie or no votes
    voted = np.array(categories)[chosen]
    decided = chosen >= 0
    return Judgement(voted, decided, decided & (voted != np.array(folds.classes)[folds.labels]))


def label_table(folds: OutOfFold, errors: LabelErrors, faces: Faces, judged: Judgement | None) -> pd.DataFrame:
    """The probably wrong labels, the worst first.

    Returns:
        Columns ``rank`` (from 1), ``id``, ``usage``, ``label``, ``suggested`` (the confident class), ``p_label``,
        ``p_suggested`` and ``margin``; with votes ``voted`` and ``wrong_by_votes`` (1, 0, or empty where undecided).
    """
    rows, classes = errors.ranked, np.array(folds.classes)
    place = {name: number for number, name in enumerate(faces.ids.tolist())}
    usage = [faces.parts[faces.usage[place[name]]] for name in folds.ids[rows].tolist()]
    columns: dict[str, Any] = {
        "rank": np.arange(1, len(rows) + 1),
        "id": folds.ids[rows],
        "usage": usage,
        "label": classes[folds.labels[rows]],
        "suggested": classes[errors.suggested[rows]],
        "p_label": errors.confidence[rows],
        "p_suggested": folds.probabilities[rows, errors.suggested[rows]],
        "margin": errors.margin[rows],
    }
    if judged is not None:
        wrong = np.where(judged.wrong[rows], "1", "0")
        columns |= {"voted": judged.voted[rows], "wrong_by_votes": np.where(judged.decided[rows], wrong, "")}
    return pd.DataFrame(columns).round({"p_label": 4, "p_suggested": 4, "margin": 4})


def _load_faces(folds: OutOfFold, overrides: Sequence[str]) -> Faces:
    """The images that the runs were trained on.

    Raises:
        UserError: they cannot be read, are others, or an override is not of ``data`` or ``labels``.
    """
    file = folds.runs[0].folder / ".hydra" / "config.yaml"
    cfg = recorded(read_yaml(file), str(file))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        with bounded():
            is_known = key.startswith(("data.", "labels.")) and OmegaConf.select(cfg, key, default=cfg) is not cfg
        if not is_known or "_target_" in key:
            raise UserError(f"{override.input_line}: with --label-errors give where the runs' data are: data.path=FILE")
        OmegaConf.update(cfg, key, override.value())
    try:
        faces = _read(cfg)
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: is damaged ({first_line(error)}); give another run of these data") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Keys of the data, which are free form, reach the function that they name as arguments.
        raise UserError(f"{file}: is damaged ({shortened(one_line(error), 200)})") from error
    if faces.data_hash != folds.runs[0].metrics["data_hash"]:
        raise UserError(f"data.path={cfg.data.path}: holds other images than the runs were trained on; give theirs")
    return faces


def _read(cfg: DictConfig) -> Faces:
    with bounded():
        return load_faces(cfg)


def _write_files(folds: OutOfFold, errors: LabelErrors, faces: Faces, table: pd.DataFrame, out: Path) -> None:
    """Write ``label_errors.csv`` and ``label_errors.png``, each atomically.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    place = {name: number for number, name in enumerate(faces.ids.tolist())}
    worst = table.rename(columns={"suggested": "prediction", "p_suggested": "confidence"})
    worst = worst.assign(row=[place[name] for name in table["id"]])
    worst = worst[~pd.Series(faces.twins[worst["row"]]).duplicated()].head(SHOWN)  # a picture is shown once
    title = f"Labels that are probably wrong ({len(worst)} of {len(table):,})"
    subtitle = f"{data_name(folds.runs[0].metrics)} · out-of-fold probabilities of {len(folds.ids):,} images"
    sheet = mistakes(faces.images[worst["row"].to_numpy()], worst, title, subtitle)
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "label_errors.csv", table_to_csv(table).encode())
        replace_file_by(out / "label_errors.png", lambda file: write_figure(sheet, file))
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror}); choose another folder") from None


def _classes_table(folds: OutOfFold, errors: LabelErrors) -> Table:
    """For each label: its images, how many are listed, the estimated number, and the class most often suggested."""
    table = Table(
        *(class_noun(folds.classes), "images", "listed", "", "estimated", "most often suggested"),
        caption="listed: another class reaches its threshold, the mean probability of the images with its label.\n"
        "estimated: wrong labels by the confident joint; too many where the models are weak.",
    )
    for label, name in enumerate(folds.classes):
        mine = folds.labels == label
        images, listed = int(mine.sum()), int((errors.wrong & mine).sum())
        counts = np.bincount(errors.suggested[errors.wrong & mine], minlength=len(folds.classes))
        most = f"{folds.classes[counts.argmax()]} ({counts.max():,})" if listed else "-"
        wrong = errors.joint[label].sum() - errors.joint[label, label]
        cells = (f"{images:,}", f"{listed:,}", percent(listed / images if images else None), f"{wrong:,.0f}", most)
        table.add_row(*map(escape, (printable(name), *cells)), end_section=label == len(folds.classes) - 1)
    total = int(errors.wrong.sum())
    share = percent(total / len(folds.labels))
    table.add_row("all classes", f"{len(folds.labels):,}", f"{total:,}", share, f"{errors.estimated:,.0f}", "")
    return table


def _votes_table(errors: LabelErrors, judged: Judgement) -> Table:
    """Precision and recall against FER+'s votes, for the list and its beginnings, by both rankings."""
    rows = np.flatnonzero(errors.wrong)
    rankings = errors.ranked, rows[np.argsort(errors.confidence[rows], kind="stable")]
    decided, wrong = int(judged.decided.sum()), int(judged.wrong.sum())
    table = Table(
        *("listed", "precision", "recall", "precision by self-confidence"),
        title="Against FER+ votes",
        title_justify="left",
        caption=f"wrong: another category has the most votes, {wrong:,} of {decided:,} images "
        f"({percent(wrong / decided)}), the precision of a random list; ties are left out.",
    )
    for length in (*(each for each in LISTED if each < len(rows)), len(rows)):
        (precision, recall), (other, _) = (
            precision_recall(order[:length], judged.wrong, judged.decided) for order in rankings
        )
        table.add_row(f"{length:,}", *(percent(None if np.isnan(x) else x) for x in (precision, recall, other)))
    return table
