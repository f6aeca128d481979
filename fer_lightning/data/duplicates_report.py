"""Report the duplicates in a data set: tables, ``audit.csv``, and a sheet of examples, ``audit.png``."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fer_lightning.config.compose import compose_config
from fer_lightning.data.duplicates import (
    BLANK,
    CORRELATIONS,
    Duplicates,
    check_correlation,
    find_duplicates,
    leaked,
    overlap_key,
    usage_pairs,
)
from fer_lightning.data.faces import Faces
from fer_lightning.data.from_config import load_faces
from fer_lightning.data.images import as_picture
from fer_lightning.presentation.escapes import table_to_csv
from fer_lightning.presentation.plotting import head, styled, write_figure
from fer_lightning.presentation.words import percent
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file, replace_file_by

log = logging.getLogger(__name__)


def audit_duplicates(overrides: list[str], out: Path, correlation: float) -> None:
    """Find the duplicates of a data set, write both files, and print tables and one line of JSON.

    Args:
        overrides: of the configuration of a run, such as ``data.path=FILE``.
        out: folder for the files.
        correlation: threshold of near duplicates.

    Raises:
        UserError: an argument is invalid, the data cannot be read, or the folder cannot be written to.
    """
    check_correlation(correlation)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: is a file; give a folder")
    faces = load_faces(compose_config(overrides))
    duplicates = find_duplicates(faces, correlation)
    source = f"SYNTHETIC ({faces.kind})" if faces.synthetic else f"{faces.kind}, {len(faces):,} images"
    write_files(faces, duplicates, source, out)
    print_tables(faces, duplicates, correlation, Console())
    log.info("Wrote %s and %s", out / "audit.csv", out / "audit.png")
    facts = {"out": str(out), "data_hash": faces.data_hash, "synthetic": faces.synthetic}
    print(json.dumps({**facts, "correlation": correlation, **duplicates.counts}), flush=True)


def print_tables(faces: Faces, duplicates: Duplicates, correlation: float, console: Console) -> None:
    """Print the duplicates of the whole data set, then by class for each part that is not for training."""
    console.print(_overview(faces, duplicates, correlation))
    present = np.unique(faces.usage).tolist()
    for usage in present:
        if usage == 0 or present[0] != 0:
            continue
        heads = ("images", "identical", "", f"or r >= {correlation:g}", "")
        classes = Table(faces.parts[usage], *heads, title=f"{faces.parts[usage]} images that are in {faces.parts[0]}")
        counted = leaked(faces, duplicates, usage)
        last = len(counted) - 1
        rows = [(escape(str(name)), row) for name, row in counted.iterrows()]
        for number, (name, row) in enumerate([*rows, ("all classes", counted.sum())]):
            cells = [f"{row['images']:,}"]
            for kind in ("exact", "near"):
                cells += [f"{row[kind]:,}", percent(row[kind] / row["images"]) if row["images"] else "-"]
            classes.add_row(name, *cells, end_section=number == last)
        console.print(classes)
    console.print(f"Blank images (standard deviation below {BLANK:g} of 255): {duplicates.counts['blank']:,}")


def _overview(faces: Faces, duplicates: Duplicates, correlation: float) -> Table:
    counts = duplicates.counts
    thresholds = sorted({correlation, *CORRELATIONS}, reverse=True)
    kinds = ["exact", *(f"near@{threshold:g}" for threshold in thresholds)]
    rows = [("pairs", "pairs"), ("groups", "groups"), ("  with conflicting labels", "conflicting_groups")]
    rows += [("images in groups", "images"), ("  with conflicting labels", "conflicting_images")]
    rows += [("redundant images", "redundant")]
    rows += [(f"  within {faces.parts[usage]}", f"{faces.parts[usage]}/redundant") for usage in np.unique(faces.usage)]
    rows += [
        (f"{faces.parts[usage]} in {faces.parts[other]}", overlap_key(faces, usage, other))
        for usage, other in usage_pairs(faces)
    ]
    table = Table(
        "duplicates",
        "identical",
        *(f"r >= {threshold:g}" for threshold in thresholds),
        title="drawn (synthetic) faces: these numbers say nothing about FER-2013" if faces.synthetic else None,
        caption="r: correlation at half size of two images that are not identical.\n"
        "A in B: images of A that have an identical or so correlated image in B.",
    )
    for title, key in rows:
        table.add_row(title, *(f"{counts[f'{kind}/{key}']:,}" if f"{kind}/{key}" in counts else "" for kind in kinds))
    return table


COLUMNS = 12
_SIDE, _LABEL, _TITLE, _MARGIN, _GAP, _HEAD = 0.95, 0.56, 0.32, 0.15, 0.14, 0.75
"""Inches: an image, the lines below it, a section's title, the sheet's margin, between pairs, the sheet's head."""


class Example(NamedTuple):
    """Images shown side by side on the sheet, and a note below the first."""

    images: tuple[int, ...]
    note: str = ""


@styled
def draw_sheet(faces: Faces, duplicates: Duplicates, source: str) -> Figure:
    """Draw examples: twins and near duplicates across splits, twins with different labels, blank images.

    Args:
        faces: the data.
        duplicates: found in ``faces``.
        source: a description of the data for the second line.
    """
    shown = _sections(faces, duplicates)
    lines = [max(1, -(-sum(len(example.images) for example in examples) // COLUMNS)) for examples in shown.values()]
    width = 2 * _MARGIN + COLUMNS * _SIDE + (COLUMNS // 2 - 1) * _GAP
    height = _HEAD + len(shown) * _TITLE + sum(lines) * (_SIDE + _LABEL)
    figure = Figure(figsize=(width, height))
    head(figure, "Duplicates, conflicting labels and blank images", source)
    figure.set_layout_engine("none")  # all positions are explicit
    top = height - _HEAD
    for (title, examples), count in zip(shown.items(), lines, strict=True):
        figure.text(_MARGIN / width, top / height, title, va="top", fontsize=10.5, fontweight="bold")
        top -= _TITLE
        for place, (index, note) in enumerate(_images_with_notes(examples)):
            row, column = divmod(place, COLUMNS)
            left = _MARGIN + column * _SIDE + column // 2 * _GAP
            bottom = top - (row + 1) * _SIDE - row * _LABEL
            axes = figure.add_axes((left / width, bottom / height, (_SIDE - 0.02) / width, _SIDE / height))
            axes.set_axis_off()
            axes.imshow(as_picture(faces.images[index]), cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            text = "\n".join(
                [faces.parts[faces.usage[index]], faces.classes[faces.labels[index]], *([note] if note else [])]
            )
            axes.text(0, -0.04, text, transform=axes.transAxes, va="top", fontsize=8, linespacing=1.15)
        top -= count * (_SIDE + _LABEL)
    return figure


def _images_with_notes(examples: list[Example]) -> Iterator[tuple[int, str]]:
    for example in examples:
        for number, index in enumerate(example.images):
            yield index, example.note if number == 0 else ""


def _sections(faces: Faces, duplicates: Duplicates) -> dict[str, list[Example]]:
    """Up to ``COLUMNS`` examples per kind of finding, by the section's title."""
    pairs = duplicates.pairs
    where = " in different splits" * bool((faces.usage[pairs["one"]] != faces.usage[pairs["other"]]).any())
    blank = duplicates.findings.index[duplicates.findings["kind"] == "blank"].tolist()
    examples = {
        "Groups of identical images in different splits": _twins_that_differ(duplicates, faces.usage),
        f"Nearly identical pairs{where}, with their correlation r": [
            Example((one, other), f"r = {value:.3f}") for one, other, value in pairs.itertuples(index=False)
        ],
        "Groups of identical images with different labels": _twins_that_differ(duplicates, faces.labels),
        "Blank images": [Example((index,)) for index in blank],
    }
    found = [*map(len, examples.values())]
    found[1] = duplicates.pairs_found
    return {
        f"{title} ({min(number, COLUMNS)} of {number:,})": _evenly_spaced(each, COLUMNS)
        for (title, each), number in zip(examples.items(), found, strict=True)
    }


def _twins_that_differ(duplicates: Duplicates, by: np.ndarray) -> list[Example]:
    """Two images of each group of identical ones whose values in ``by``, (n,), differ."""
    exact = duplicates.findings[duplicates.findings["kind"] == "exact"]
    examples = []
    for _, members in exact.groupby("group"):
        index = members.index.to_numpy()
        different = index[by[index] != by[index[0]]]
        if len(different):
            examples.append(Example((int(index[0]), int(different[0]))))
    return examples


def _evenly_spaced(items: list[Example], limit: int) -> list[Example]:
    """At most ``limit`` of the items, evenly spaced."""
    return [items[place] for place in np.unique(np.linspace(0, len(items) - 1, limit).astype(int))] if items else []


def write_files(faces: Faces, duplicates: Duplicates, source: str, out: Path) -> None:
    """Write ``audit.csv`` and ``audit.png``, each atomically.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    sheet = draw_sheet(faces, duplicates, source)
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "audit.csv", table_to_csv(duplicates.findings).encode())
        replace_file_by(out / "audit.png", lambda file: write_figure(sheet, file))
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror}); choose another folder") from None
