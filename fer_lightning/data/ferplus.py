"""FER+: ten annotators' votes per FER-2013 image, as labels, as soft targets and as an upper bound on agreement.

Barsoum et al. 2016, "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution".
"""

import csv
import dataclasses
import io
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fer_lightning.config.rules import VOTES
from fer_lightning.data import fer2013
from fer_lightning.data.classes import read_mapping, select_classes
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces
from fer_lightning.data.label_table import MAX_LINE, complete_rows, header_names
from fer_lightning.data.tables import to_numbers
from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import expanded, read_bytes

log = logging.getLogger(__name__)

CATEGORIES = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "sadness",
    "surprise",
    "neutral",
    "contempt",
    "unknown",
    "nf",
)
"""Categories of the votes: the seven emotions in the order of ``EMOTIONS``, then the others; ``nf`` is "not a face"."""

NUMBERED = re.compile(r"fer([0-9]{7})\.png")
"""Names of the images in Microsoft's file: the number of the row in fer2013.csv, from 0."""

LEAST_SHARE = 0.5
"""Minimum share of an image's votes for the seven emotions, below which soft targets leave the image out.

Barsoum et al. discard images on which the emotions they keep have less than half of the votes.
"""


EIGHT = (*EMOTIONS, "contempt")
"""The eight emotions of FER+, contempt among them."""


def load_eight(
    path: str | None,
    votes: str | None,
    classes: str | None = None,
    only: Sequence[str] | None = None,
    cache_dir: str | None = None,
) -> Faces:
    """FER-2013's images with the eight emotions of FER+ that have the most votes, contempt among them.

    Args:
        path: of FER-2013, see ``fer2013.load``.
        votes: see ``read_votes``.
        classes: file that renames, merges or leaves out classes; see ``classes.read_mapping``.
        only: classes to keep.
        cache_dir: as for ``fer2013.load``.

    Raises:
        UserError: as ``fer2013.load`` and ``relabel``.
    """
    if votes is None:
        raise UserError(f"data.votes is missing; give data.votes={VOTES}")
    faces = fer2013.load(path, cache_dir)
    try:
        labelled = relabel(faces, votes, "majority", EIGHT)
    except UserError as error:
        raise UserError(str(error).replace("labels.votes=", "data.votes=")) from None
    return select_classes(labelled, read_mapping(expanded(classes)) if classes else None, only)


def relabel(faces: Faces, path: str, targets: str, classes: tuple[str, ...] = EMOTIONS) -> Faces:
    """Replace the labels by the emotion with the most votes; drop images without one.

    An image is kept if one of the emotions has more votes than any other category. Dropped, and counted in the
    log, are images with a tie for the most votes, images whose most frequent vote is contempt, unknown or not a face,
    and images without votes. This is a plurality; in Barsoum et al. a majority is more than half of the votes.

    Args:
        faces: the data.
        path: file of votes, see ``read_votes``. Microsoft's file does not name the images; its rows are those of
            fer2013.csv, so ``faces`` must be read from that file.
        targets: ``majority`` trains on the new labels; ``soft`` trains on the distribution of an image's votes over
            the emotions, and drops images on which these have less than half of the votes.
        classes: the first seven or eight of ``CATEGORIES``, by their names here.

    Returns:
        Faces with ``label_source`` "ferplus"; the new labels and soft targets also change ``data_hash``.

    Raises:
        UserError: the votes cannot be read or cannot be matched to the images, or no image is left.
    """
    votes = read_votes(path)
    _check_match(faces, votes, path)
    counts = match(votes, faces.ids)
    chosen, total, emotional = plurality(counts), counts.sum(axis=1), counts[:, : len(classes)].sum(axis=1)
    others_named = "contempt, unknown or no face" if len(classes) == len(EMOTIONS) else "unknown or no face"
    reasons = {
        "without votes": total == 0,
        "tied": (total > 0) & (chosen < 0),
        f"seen as {others_named}": chosen >= len(classes),
    }
    if targets == "soft":
        others = emotional < LEAST_SHARE * total
        reasons["with less than half of the votes for an emotion"] = others & ~np.any(list(reasons.values()), axis=0)
    kept = np.flatnonzero(~np.any(list(reasons.values()), axis=0))
    left_out = ", ".join(f"{mask.sum():,} {reason}" for reason, mask in reasons.items() if mask.any())
    same = np.mean(chosen[kept] == faces.labels[kept]) if len(kept) else 0.0
    log.info(
        "FER+ labels %d of %d images (%s); %.1f %% keep their label",
        len(kept),
        len(faces),
        f"left out: {left_out}" if left_out else "none left out",
        100 * same,
    )
    if not len(kept):
        raise UserError(f"labels.votes={path}: leaves no image with a label ({left_out})")
    new = Faces.from_arrays(
        faces.images[kept], chosen[kept], faces.usage[kept], faces.ids[kept], faces.kind, faces.synthetic, classes
    )
    if targets == "soft":
        new = new.with_soft((counts[kept, : len(classes)] / emotional[kept, None]).astype(np.float32))
    return dataclasses.replace(new, label_source="ferplus")


def ceiling(ids: Iterable[str], labels: Sequence[str], path: str | Path) -> pd.DataFrame:
    """Agreement of FER-2013's labels with the FER+ votes: an estimate of how much confusion is label noise.

    Args:
        ids: image ids, as in ``predictions.csv``.
        labels: FER-2013's label of each image, as a name of ``EMOTIONS``.
        path: file of votes, see ``read_votes``.

    Returns:
        One row per emotion: ``class``, its name; ``n``, number of its images with votes; ``agreement``, share of those
        without a tie whose most voted category is this emotion; ``zero_votes``, share of the ``n`` images without
        any vote for this emotion. NaN where there are no such images.

    Raises:
        UserError: the votes cannot be read, or name none of the images.
    """
    ids, votes = np.asarray(list(ids), dtype=object), read_votes(path)
    counts = match(votes, ids)
    if len(ids) and not counts.any():
        raise UserError(f"{path}: names images such as {votes.index[0]!r}, and none such as {ids[0]!r}")
    chosen, voted = plurality(counts), counts.any(axis=1)
    rows = []
    for label, emotion in enumerate(EMOTIONS):
        mine = voted & (np.asarray(labels) == emotion)
        decided = chosen[mine & (chosen >= 0)]
        rows.append(
            {
                "class": emotion,
                "n": int(mine.sum()),
                "agreement": np.mean(decided == label) if len(decided) else np.nan,
                "zero_votes": np.mean(counts[mine, label] == 0) if mine.any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def read_votes(path: str | Path) -> pd.DataFrame:
    """Read a file of votes: Microsoft's ``fer2013new.csv``, or one with a column ``path``.

    Returns:
        int64 votes, one column for each of ``CATEGORIES``, indexed like ``Faces.ids``: by path, or, for Microsoft's
        file, by ``row N`` of fer2013.csv and with an additional column ``usage``. Rows that have no image name in
        Microsoft's file, because the image is not a face, get zero votes.

    Raises:
        UserError: the file cannot be read, a column or value is wrong, or Microsoft's rows are in another order; names
            the row and column.
    """
    source = f"labels.votes={path}"
    try:
        content = read_bytes(expanded(path))
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); give {VOTES}") from None
    except UserError as error:
        raise UserError(f"labels.votes={error}; give {VOTES}") from None
    try:
        table = _read_table(content, source)
    except UnicodeDecodeError:
        raise UserError(f"{source}: is not a csv that can be read; give {VOTES}") from None
    by_path = "path" in table
    places, texts = pd.factorize(table[list(CATEGORIES)].to_numpy().ravel())  # few are different
    numbers = to_numbers(pd.Series(texts)).to_numpy()[places].reshape(len(table), -1)
    wrong = ~((numbers >= 0) & (numbers % 1 == 0) & (numbers < 2**31))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        name = CATEGORIES[column]
        value = shortened(table[name].iloc[row], 40) or "nothing"
        raise UserError(f"{source}, row {row + 1}: {name}={value}; votes are whole numbers, 0 or more; correct it")
    votes = pd.DataFrame(numbers.astype(np.int64), columns=list(CATEGORIES))
    if by_path:
        votes.index = pd.Index(table["path"])
        if not votes.index.is_unique:
            twice = votes.index[votes.index.duplicated()][0]
            raise UserError(f"{source}: names {twice} twice; one row for each image is needed")
        return votes
    for row, name in enumerate(table["image name"]):
        number = NUMBERED.fullmatch(name)
        if number is not None and int(number[1]) != row:  # a sorted copy: each image would get the votes of another
            place = f"names {name}, the image of row {int(number[1]) + 1}"
            raise UserError(f"{source}, row {row + 1}: {place}; give the file in the order that Microsoft's has")
    votes[(table["image name"] == "").to_numpy()] = 0
    votes.index = pd.Index([f"row {number}" for number in range(1, len(votes) + 1)])
    return votes.assign(usage=table["usage"].to_numpy())


def _read_table(content: bytes, source: str) -> pd.DataFrame:
    """The columns of a file of votes that are needed, as the texts that it has.

    Raises:
        UnicodeDecodeError: the file is not UTF-8.
        UserError: a column is missing or there twice, or a row is not complete; names it.
    """
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    lines = iter(lambda: text.readline(MAX_LINE), "")
    named = header_names(next((line for line in lines if line.strip()), ""), ",")
    if twice := [name for name in (*CATEGORIES, "path", "usage", "image name") if named.count(name) > 1]:
        raise UserError(f"{source}: has the column {twice[0]} twice; remove or rename one of them")
    needed = (*CATEGORIES, *(("path",) if "path" in named else ("usage", "image name")))
    if missing := [name for name in needed if name not in named]:
        raise UserError(f"{source}: has no column {missing[0]}; give {VOTES}")
    places = [named.index(name) for name in needed]
    rows = []
    for number, row in enumerate(complete_rows(csv.reader(lines, strict=True), source, skip_empty=False), start=1):
        if len(row) > len(named):
            raise UserError(f"{source}, row {number}: has more columns than the first line names; give {VOTES}")
        cells = [row[place].strip() if place < len(row) else "" for place in places]
        if needed[-1] == "path" and (not cells[-1] or "\0" in cells[-1]):
            what = "has a null character" if cells[-1] else "is empty"
            raise UserError(f"{source}, row {number}: its path {what}; correct it, or remove the row")
        rows.append(cells)
    if not rows:
        raise UserError(f"{source}: has no rows; give {VOTES}")
    return pd.DataFrame(rows, columns=list(needed), dtype=object)


def match(votes: pd.DataFrame, ids: Iterable[str]) -> np.ndarray:
    """Votes for the images ``ids``: int64, (n, 10), in the order of ``CATEGORIES``; zeros for unknown images."""
    known = votes[list(CATEGORIES)]
    return known.reindex(pd.Index(list(map(str, ids))), fill_value=0).to_numpy(np.int64)


def plurality(counts: np.ndarray) -> np.ndarray:
    """Index of the category with the most votes: int64, (n,); -1 for a tie or no votes.

    Args:
        counts: (n, 10) votes.
    """
    most = counts.max(axis=1)
    unique = ((counts == most[:, None]).sum(axis=1) == 1) & (most > 0)
    return np.where(unique, counts.argmax(axis=1), -1)


def _check_match(faces: Faces, votes: pd.DataFrame, path: str) -> None:
    """Raise ``UserError`` if the votes detectably belong to other images."""
    if not votes.index.isin(faces.ids).any():
        if "usage" in votes:
            raise UserError(
                f"labels.votes={path}: has the rows of fer2013.csv and names no files, so it cannot be matched to the"
                f" {faces.kind}; give data.path=fer2013.csv, or votes with a column path"
            )
        raise UserError(
            f"labels.votes={path}: names images such as {votes.index[0]!r}, the data such as {str(faces.ids[0])!r}:"
            " none can be matched; give votes whose column path holds the paths inside the archive, or, for"
            " data.path=fer2013.csv, Microsoft's fer2013new.csv"
        )
    if "usage" not in votes:
        return
    if len(votes) != len(faces):
        raise UserError(
            f"labels.votes={path}: has {len(votes):,} rows, and the data {len(faces):,}: votes without paths fit only"
            " the whole fer2013.csv, in its own order"
        )
    different = np.flatnonzero(votes["usage"].str.lower() != [USAGES[number].lower() for number in faces.usage])
    if len(different):
        raise UserError(
            f"labels.votes={path}, row {different[0] + 1}: is {votes['usage'].iloc[different[0]]} there and"
            f" {USAGES[faces.usage[different[0]]]} in the data, which are not in the order of fer2013.csv"
        )
