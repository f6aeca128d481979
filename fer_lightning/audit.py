"""What leaks between splits: ``python -m fer_lightning.audit data.path=FILE [key=value ...] [--out FOLDER]``.

Finds identical images, nearly identical ones, identical images with different labels, and blank ones; prints what it
found and writes ``audit.csv`` and a sheet of examples, ``audit.png``.
"""

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fer_lightning.config import command_line
from fer_lightning.config import schema as schema
from fer_lightning.config.command_line import Parser
from fer_lightning.config.settings import without_hydra
from fer_lightning.data.faces import EMOTIONS, IMAGE_SIZE, USAGES, Faces, count_classes
from fer_lightning.data.from_config import load_faces
from fer_lightning.presentation.plotting import head, styled
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file

log = logging.getLogger(__name__)

BLANK = 1.0
"""Standard deviation, in gray levels, below which an image shows nothing."""

CORRELATIONS = (0.99, 0.97, 0.95)
"""Thresholds that near duplicates are counted at."""

LEAST_CORRELATION = 0.9
"""Below it, different faces look alike to a correlation, and the hash misses pairs."""

HASH_DISTANCE = 16
"""Of 64 bits: how far the hashes of near duplicates may be apart.

Of all pairs of FER-2013's images that correlate by 0.95 or more, it misses 1 in 1,600; by 0.9 or more, 6 in 100.
"""

_BLOCK = 512
_HALF = IMAGE_SIZE // 2


@dataclass(frozen=True)
class Audit:
    """What was found in a set of faces.

    Attributes:
        counts: flat, for programs; see ``audit``.
        findings: one row per image and kind of finding: ``id``, ``usage``, ``label``, ``kind`` (exact, near or blank),
            ``group`` (number within its kind; near duplicates of near duplicates are one group), ``conflict`` (1 where
            the group has several labels), ``twin_in`` (usages that hold a duplicate of this very image),
            ``correlation`` (with the nearest one; near only).
        pairs: ``one``, ``other`` (indices of the images) and ``correlation`` of the near duplicates; of identical
            images only the first stands here.
    """

    counts: dict[str, int]
    findings: pd.DataFrame
    pairs: pd.DataFrame


def audit(faces: Faces, correlation: float = 0.95) -> Audit:
    """Look for duplicates, conflicting labels and blank images.

    Args:
        faces: the data.
        correlation: of the images at half their size, from which on two that are not identical are near duplicates.

    Returns:
        ``counts`` has ``images``; ``exact/redundant`` (images beyond the first of their group), ``exact/groups``,
        ``exact/images``, ``exact/conflicting_groups``, ``exact/conflicting_images``;
        ``exact/<usage>/redundant``; ``exact/<usage>/in/<other>``, the images of a usage that have a twin in the
        other; the same with ``near@0.95`` (``pairs``, ``images``, ``groups``, ``conflicting_groups``) at several
        thresholds, where ``<usage>/in/<other>`` counts identical images, too; ``blank``.

    Raises:
        UserError: ``correlation`` out of range.
    """
    check_correlation(correlation)
    _, first, unique = np.unique(faces.twins, return_index=True, return_inverse=True)
    deviation = np.concatenate([faces.images[part].std(axis=(1, 2)) for part in _parts(len(faces))])
    shown = first[deviation[first] >= BLANK]
    one, other, similarity = near_pairs(faces.images[shown], min(correlation, *CORRELATIONS))
    one, other = unique[shown[one]], unique[shown[other]]

    copies = np.zeros((len(first), len(USAGES)), np.int64)
    np.add.at(copies, (unique, faces.usage), 1)
    others = copies[unique]
    others[np.arange(len(faces)), faces.usage] -= 1
    twins = others > 0
    exact = _grouped(faces, unique, twins)
    counts = {
        "images": len(faces),
        "exact/redundant": len(faces) - len(first),
        **_summary("exact", faces, exact, twins),
    }
    for usage in np.unique(faces.usage):
        inside = copies[:, usage]
        counts[f"exact/{USAGES[usage]}/redundant"] = int(inside.sum() - np.count_nonzero(inside))

    def alike(threshold: float) -> tuple[pd.DataFrame, np.ndarray]:
        i, j = one[similarity >= threshold], other[similarity >= threshold]
        around = np.zeros(copies.shape, bool)
        np.logical_or.at(around, i, copies[j] > 0)
        np.logical_or.at(around, j, copies[i] > 0)
        graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(len(first), len(first)))
        group = connected_components(graph, directed=False)[1]
        return _grouped(faces, group[unique], around[unique]), around[unique]

    for threshold in sorted({correlation, *CORRELATIONS}, reverse=True):
        near, around = alike(threshold)
        kind = f"near@{threshold:g}"
        counts[f"{kind}/pairs"] = int(np.count_nonzero(similarity >= threshold))
        counts |= _summary(kind, faces, near, around | twins)
    near, _ = alike(correlation)
    nearest = np.zeros(len(first))
    for end in (one, other):
        np.maximum.at(nearest, end, similarity)
    near["correlation"] = nearest[unique[near.index]].round(4)
    blank = pd.DataFrame({"group": 0, "conflict": 0, "twin_in": ""}, index=np.flatnonzero(deviation < BLANK))
    counts["blank"] = len(blank)

    found = pd.concat([exact.assign(kind="exact"), near.assign(kind="near"), blank.assign(kind="blank")])
    index = found.index.to_numpy(np.int64)
    found.insert(0, "id", faces.ids[index])
    found.insert(1, "usage", np.array(USAGES)[faces.usage[index]])
    found.insert(2, "label", np.array(EMOTIONS)[faces.labels[index]])
    found.insert(3, "kind", found.pop("kind"))
    chosen = similarity >= correlation
    pairs = pd.DataFrame({"one": first[one[chosen]], "other": first[other[chosen]], "correlation": similarity[chosen]})
    return Audit(counts, found, pairs)


def check_correlation(correlation: float) -> None:
    """Refuse a threshold at which the search finds other than near duplicates, or misses many.

    Raises:
        UserError: ``correlation`` is below 0.9, or 1 and more.
    """
    if not LEAST_CORRELATION <= correlation < 1:
        raise UserError(f"--correlation={correlation}: accepted is {LEAST_CORRELATION} to below 1")


def near_pairs(images: np.ndarray, correlation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of images that look alike: by a perceptual hash first, then by their pixels.

    The hash is one bit for each of the 64 lowest frequencies of the cosine transform, whether it is above their median
    (Zauner 2010, "pHash"). The pixels are compared at half the size, so that a shift by one pixel and the noise of a
    JPEG count little; a correlation does not mind other brightness and contrast.

    Args:
        images: uint8, (n, 48, 48), none of them uniform.
        correlation: least one of a pair.

    Returns:
        Positions of both images, the first smaller than the second, and the correlation of each pair.
    """
    hashes = np.empty((len(images), 64), np.float32)
    pixels = np.empty((len(images), _HALF * _HALF), np.float32)
    frequency, place = np.arange(8)[:, None], np.arange(_HALF)
    cosines = np.cos(np.pi * frequency * (2 * place + 1) / IMAGE_SIZE).astype(np.float32)
    for part in _parts(len(images)):
        half = images[part].reshape(-1, _HALF, 2, _HALF, 2).mean(axis=(2, 4), dtype=np.float32)
        spectrum = (cosines @ half @ cosines.T).reshape(-1, 64)
        hashes[part] = np.where(spectrum > np.median(spectrum, axis=1, keepdims=True), 1, -1)
        flat = half.reshape(len(half), -1) - half.mean(axis=(1, 2))[:, None]
        pixels[part] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    found = [np.empty((2, 0), np.int64)]
    similar = [np.empty(0, np.float32)]
    for part in _parts(len(images)):
        # The product of two rows of plus and minus ones is 64 minus twice the bits that differ.
        close = hashes[part] @ hashes[part.start :].T >= 64 - 2 * HASH_DISTANCE
        one, other = np.nonzero(np.triu(close, 1))
        one, other = one + part.start, other + part.start
        for some in _parts(len(one), 16 * _BLOCK):
            values = np.einsum("ij,ij->i", pixels[one[some]], pixels[other[some]])
            kept = values >= correlation
            found.append(np.stack([one[some][kept], other[some][kept]]))
            similar.append(values[kept])
    one, other = np.concatenate(found, axis=1)
    return one, other, np.concatenate(similar)


def _parts(length: int, size: int = _BLOCK) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _grouped(faces: Faces, group: np.ndarray, around: np.ndarray) -> pd.DataFrame:
    """The images that have a duplicate in any usage, by group: group (from 1), conflict, twin_in; indexed by image.

    Args:
        faces: the data.
        group: (n,) number of each image's group.
        around: (n, usages) whether it has a duplicate in that usage.
    """
    members = np.flatnonzero(around.any(axis=1))
    found = pd.DataFrame({"group": group[members], "label": faces.labels[members]}, index=members)
    found["conflict"] = (found.groupby("group")["label"].transform("nunique") > 1).astype(int)
    found["group"] = pd.factorize(found["group"])[0] + 1
    found["twin_in"] = [" ".join(np.array(USAGES)[row]) for row in around[members]]
    return found.sort_values("group", kind="stable")[["group", "conflict", "twin_in"]]


def _summary(kind: str, faces: Faces, found: pd.DataFrame, around: np.ndarray) -> dict[str, int]:
    conflicting = found[found["conflict"] == 1]
    counts = {
        f"{kind}/groups": found["group"].nunique(),
        f"{kind}/images": len(found),
        f"{kind}/conflicting_groups": conflicting["group"].nunique(),
        f"{kind}/conflicting_images": len(conflicting),
    }
    for usage, other in _across(faces):
        leaked = around[faces.usage == usage, other]
        counts[f"{kind}/{_key(usage, other)}"] = int(leaked.sum())
    return counts


def _key(usage: int, other: int) -> str:
    return f"{USAGES[usage]}/in/{USAGES[other]}"


def _across(faces: Faces) -> list[tuple[int, int]]:
    """Every usage that occurs with each one before it."""
    present = np.unique(faces.usage).tolist()
    return [(usage, other) for usage in present for other in present if other < usage]


def leaked(faces: Faces, result: Audit, usage: int) -> pd.DataFrame:
    """Images of a usage that have a duplicate in Training.

    Returns:
        Indexed by emotion, and ``all``: ``images`` of the usage, ``exact`` with an identical one in Training, ``near``
        with an identical or a nearly identical one.
    """
    found = result.findings
    known = found[found["twin_in"].str.contains(USAGES[0], regex=False)]
    members, mine = np.arange(len(faces)), faces.usage == usage
    masks = {
        "images": mine,
        "exact": mine & np.isin(members, known.index[known["kind"] == "exact"]),
        "near": mine & np.isin(members, known.index),
    }
    table = pd.DataFrame({name: count_classes(faces.labels[mask]) for name, mask in masks.items()}, index=EMOTIONS)
    table.loc["all"] = table.sum()
    return table


def print_tables(faces: Faces, result: Audit, correlation: float, console: Console) -> None:
    """What was found: duplicates over all, then by emotion for each usage that tests."""
    counts, present = result.counts, np.unique(faces.usage).tolist()
    drawn = "drawn (synthetic) faces: these numbers say nothing about FER-2013" if faces.synthetic else None
    thresholds = sorted({correlation, *CORRELATIONS}, reverse=True)
    kinds = ["exact", *(f"near@{threshold:g}" for threshold in thresholds)]
    rows = [("pairs", "pairs"), ("groups", "groups"), ("  of conflicting labels", "conflicting_groups")]
    rows += [("images in groups", "images"), ("  of conflicting labels", "conflicting_images")]
    rows += [("redundant images", "redundant")]
    rows += [(f"  within {USAGES[usage]}", f"{USAGES[usage]}/redundant") for usage in present]
    rows += [(f"{USAGES[usage]} in {USAGES[other]}", _key(usage, other)) for usage, other in _across(faces)]
    table = Table(
        "duplicates",
        "identical",
        *(f"r >= {threshold:g}" for threshold in thresholds),
        title=drawn,
        caption="r: correlation of two images that are not identical, at half their size.\n"
        "A in B: images of A with an identical or so correlated one in B.",
    )
    for title, key in rows:
        table.add_row(title, *(f"{counts[f'{kind}/{key}']:,}" if f"{kind}/{key}" in counts else "" for kind in kinds))
    console.print(table)
    for usage in present:
        if usage == 0 or present[0] != 0:
            continue
        heads = ("images", "identical", "", f"or r >= {correlation:g}", "")
        classes = Table(USAGES[usage], *heads, title=f"{USAGES[usage]} images that are in Training")
        for emotion, row in leaked(faces, result, usage).iterrows():
            cells = [f"{row['images']:,}"]
            for kind in ("exact", "near"):
                cells += [f"{row[kind]:,}", f"{100 * row[kind] / row['images']:.1f} %" if row["images"] else "-"]
            classes.add_row(str(emotion), *cells, end_section=emotion == EMOTIONS[-1])
        console.print(classes)
    console.print(f"Blank images (standard deviation below {BLANK:g} of 255): {counts['blank']:,}")


COLUMNS = 12
_SIDE, _WORDS, _TITLE, _MARGIN, _GAP, _HEAD = 0.95, 0.56, 0.32, 0.15, 0.14, 0.75
"""Inches: an image, the lines below it, a section's title, the sheet's margin, between pairs, the sheet's head."""


class Example(NamedTuple):
    """Images that stand together on the sheet, and words below the first."""

    images: tuple[int, ...]
    words: str = ""


@styled
def draw(faces: Faces, result: Audit, source: str) -> Figure:
    """A sheet of examples: twins and near duplicates across splits, twins with different labels, blank images.

    Args:
        faces: the data.
        result: what was found in them.
        source: the data in words, for the second line.
    """
    pairs = result.pairs.sort_values("correlation", ascending=False, kind="stable")
    apart = faces.usage[pairs["one"]] != faces.usage[pairs["other"]]
    pairs, where = (pairs[apart], " in different splits") if apart.any() else (pairs, "")
    blank = result.findings.index[result.findings["kind"] == "blank"].tolist()
    sections = {
        "Groups of identical images in different splits": _twins_apart(result, faces.usage),
        f"Nearly identical pairs{where}, with their correlation r": [
            Example((one, other), f"r = {value:.3f}")
            for one, other, value in zip(*(pairs[name].tolist() for name in pairs), strict=True)
        ],
        "Groups of identical images with different labels": _twins_apart(result, faces.labels),
        "Blank images": [Example((index,)) for index in blank],
    }
    shown = {
        f"{title} ({min(len(items), COLUMNS)} of {len(items):,})": _spread(items, COLUMNS)
        for title, items in sections.items()
    }
    rows = [max(1, -(-sum(len(example.images) for example in items) // COLUMNS)) for items in shown.values()]
    width = 2 * _MARGIN + COLUMNS * _SIDE + (COLUMNS // 2 - 1) * _GAP
    height = _HEAD + len(shown) * _TITLE + sum(rows) * (_SIDE + _WORDS)
    figure = Figure(figsize=(width, height))
    head(figure, "Duplicates, conflicting labels and blank images", source)
    figure.set_layout_engine("none")  # every place is given
    top = height - _HEAD
    for (title, items), lines in zip(shown.items(), rows, strict=True):
        figure.text(_MARGIN / width, top / height, title, va="top", fontsize=10.5, fontweight="bold")
        top -= _TITLE
        place = 0
        for example in items:
            for index in example.images:
                row, column = divmod(place, COLUMNS)
                left = _MARGIN + column * _SIDE + column // 2 * _GAP
                low = top - (row + 1) * _SIDE - row * _WORDS
                axes = figure.add_axes((left / width, low / height, (_SIDE - 0.02) / width, _SIDE / height))
                axes.set_axis_off()
                axes.imshow(faces.images[index], cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
                words = [USAGES[faces.usage[index]], EMOTIONS[faces.labels[index]]]
                words += [example.words] if index == example.images[0] else []
                text = "\n".join(words)
                axes.text(0, -0.04, text, transform=axes.transAxes, va="top", fontsize=8, linespacing=1.15)
                place += 1
        top -= lines * (_SIDE + _WORDS)
    return figure


def _twins_apart(result: Audit, by: np.ndarray) -> list[Example]:
    """Two images of each group of identical ones in which ``by``, (n,), is not the same for all."""
    exact = result.findings[result.findings["kind"] == "exact"]
    examples = []
    for _, members in exact.groupby("group"):
        index = members.index.to_numpy()
        apart = index[by[index] != by[index[0]]]
        if len(apart):
            examples.append(Example((int(index[0]), int(apart[0]))))
    return examples


def _spread(items: list[Example], limit: int) -> list[Example]:
    """So many of the items, evenly from all of them."""
    return [items[place] for place in np.unique(np.linspace(0, len(items) - 1, limit).astype(int))] if items else []


def write(faces: Faces, result: Audit, source: str, out: Path) -> None:
    """Write ``audit.csv`` and ``audit.png``, each whole or not at all.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    picture = io.BytesIO()
    draw(faces, result, source).savefig(picture, format="png")
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "audit.csv", result.findings.to_csv(index=False).encode())
        replace_file(out / "audit.png", picture.getvalue())
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror}); choose another folder") from None


def main(arguments: list[str] | None = None) -> None:
    """Look for duplicates, conflicting labels and blank images in a set of faces."""
    parser = Parser(prog="python -m fer_lightning.audit", description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="data.path=FILE, or other key=value as for a run")
    parser.add_argument("--out", type=Path, default=Path("outputs/audit"), help="folder for audit.csv and audit.png")
    parser.add_argument(
        "--correlation",
        type=float,
        default=0.95,
        help="of two images at half their size, from which on they are near duplicates (default: %(default)s)",
    )
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_correlation(parsed.correlation)
    if parsed.out.exists() and not parsed.out.is_dir():
        raise UserError(f"--out={parsed.out}: is a file; give a folder")
    faces = load_faces(_composed(parsed.overrides))
    result = audit(faces, parsed.correlation)
    source = f"SYNTHETIC ({faces.kind})" if faces.synthetic else f"{faces.kind}, {len(faces):,} images"
    write(faces, result, source, parsed.out)
    print_tables(faces, result, parsed.correlation, Console())
    log.info("Wrote %s and %s", parsed.out / "audit.csv", parsed.out / "audit.png")
    facts = {"out": str(parsed.out), "data_hash": faces.data_hash, "synthetic": faces.synthetic}
    print(json.dumps({**facts, "correlation": parsed.correlation, **result.counts}), flush=True)


def _composed(overrides: list[str]) -> DictConfig:
    """The configuration of a run with these overrides, checked like one."""
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        run = without_hydra(cfg)
        schema.validate(run, cfg.hydra.runtime.choices)
    return run


if __name__ == "__main__":
    command_line.run_tool(main)
