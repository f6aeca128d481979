"""Identical and nearly identical images, conflicting labels and blank images in a data set; no input or output."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fer_lightning.data.faces import IMAGE_SIZE, USAGES, Faces
from fer_lightning.runtime.errors import UserError

BLANK = 1.0
"""Standard deviation in gray levels below which an image is blank."""

CORRELATIONS = (0.99, 0.97, 0.95)
"""Thresholds at which near duplicates are counted."""

LEAST_CORRELATION = 0.9
"""Smallest threshold: below it, different faces correlate and the hash misses pairs."""

HASH_DISTANCE = 16
"""Largest number of differing bits, of 64, between the hashes of near duplicates.

Of all pairs of FER-2013's images that correlate by 0.95 or more, it misses 1 in 1,600; by 0.9 or more, 6 in 100.
"""

MOST_PAIRS = 100_000
"""Maximum number of near duplicates that are returned as pairs; n images that are all alike have n (n - 1) / 2."""

_BLOCK, _COLUMNS = 512, 8192
_DENSE = 0.25
"""Share of pairs with close hashes in a block above which the pixels of all its pairs are compared at once."""

_HALF = IMAGE_SIZE // 2


@dataclass(frozen=True)
class Duplicates:
    """Duplicates, conflicting labels and blank images of a data set.

    Attributes:
        counts: flat, by name; see ``find_duplicates``.
        findings: one row per image and kind of finding: ``id``, ``usage``, ``label``, ``kind`` (exact, near or blank),
            ``group`` (number within its kind; near duplicates of near duplicates are one group), ``conflict`` (1 where
            the group has several labels), ``twin_in`` (usages that contain a duplicate of this image),
            ``correlation`` (with its nearest image; near only).
        pairs: ``one``, ``other`` (indices of the images) and ``correlation`` of the near duplicates in different
            usages, or of all where there are none; identical images are represented by the first of them. The
            ``MOST_PAIRS`` with the highest correlation.
        pairs_found: number of those that ``pairs`` is taken from.
    """

    counts: dict[str, int]
    findings: pd.DataFrame
    pairs: pd.DataFrame
    pairs_found: int


def find_duplicates(faces: Faces, correlation: float = 0.95) -> Duplicates:
    """Find duplicates, conflicting labels and blank images.

    Args:
        faces: the data.
        correlation: threshold of near duplicates; of the images at half their size.

    Returns:
        ``counts`` has ``images``; ``exact/redundant`` (images beyond the first of their group), ``exact/groups``,
        ``exact/images``, ``exact/conflicting_groups``, ``exact/conflicting_images``;
        ``exact/<usage>/redundant``; ``exact/<usage>/in/<other>``, the images of a usage that have a twin in the
        other; the same with ``near@0.95`` (``pairs``, ``images``, ``groups``, ``conflicting_groups``) at several
        thresholds, where ``<usage>/in/<other>`` includes identical images; ``blank``.

    Raises:
        UserError: ``correlation`` out of range.
    """
    check_correlation(correlation)
    _, first, unique = np.unique(faces.twins, return_index=True, return_inverse=True)
    deviation = np.concatenate([_gray(faces.images[part]).std(axis=(1, 2)) for part in _parts(len(faces))])
    candidates = first[deviation[first] >= BLANK]
    copies = np.zeros((len(first), len(USAGES)), np.int64)
    np.add.at(copies, (unique, faces.usage), 1)
    twins = _other_copies(copies, unique, faces.usage)
    exact = _groups(faces, unique, twins)
    counts = {"images": len(faces), "exact/redundant": len(faces) - len(first)}
    counts |= _count_groups("exact", faces, exact, twins)
    for usage in np.unique(faces.usage):
        inside = copies[:, usage]
        counts[f"exact/{faces.parts[usage]}/redundant"] = int(inside.sum() - np.count_nonzero(inside))
    neighbours = {threshold: _Neighbours(copies) for threshold in sorted({correlation, *CORRELATIONS}, reverse=True)}
    nearest, best = np.zeros(len(first)), _BestPairs(faces.usage)
    for places, others, similarity in near_pairs(faces.images, candidates, min(neighbours)):
        one, other = unique[candidates[places]], unique[candidates[others]]
        for end in (one, other):
            np.maximum.at(nearest, end, similarity)
        for threshold, around in neighbours.items():
            around.add(one[similarity >= threshold], other[similarity >= threshold])
        chosen = similarity >= correlation
        best.add(first[one[chosen]], first[other[chosen]], similarity[chosen])
    near = exact
    for threshold, found in neighbours.items():
        groups = _groups(faces, found.groups()[unique], found.around[unique])
        kind = f"near@{threshold:g}"
        counts[f"{kind}/pairs"] = found.pairs
        counts |= _count_groups(kind, faces, groups, found.around[unique] | twins)
        if threshold == correlation:
            near = groups
    near["correlation"] = nearest[unique[near.index]].round(4)
    blank = pd.DataFrame({"group": 0, "conflict": 0, "twin_in": ""}, index=np.flatnonzero(deviation < BLANK))
    counts["blank"] = len(blank)
    findings = _findings(faces, {"exact": exact, "near": near, "blank": blank})
    return Duplicates(counts, findings, *best.chosen())


def check_correlation(correlation: float) -> None:
    """Refuse a threshold at which the search would match different faces, or miss many pairs.

    Raises:
        UserError: ``correlation`` is below 0.9, or 1 and more.
    """
    if not LEAST_CORRELATION <= correlation < 1:
        raise UserError(f"--correlation={correlation}: out of range; accepted: {LEAST_CORRELATION} to below 1")


Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Both images of some pairs, and the correlation of each."""


def near_pairs(images: np.ndarray, chosen: np.ndarray, correlation: float) -> Iterator[Pairs]:
    """Find all pairs of similar images: candidates by a perceptual hash, confirmed by their pixels.

    The hash has one bit for each of the 64 lowest frequencies of the cosine transform: whether it exceeds their median
    (Zauner 2010, "pHash"). The pixels are compared at half the size, which reduces the effect of a shift by one pixel
    and of JPEG noise; correlation is invariant to brightness and contrast.

    Args:
        images: uint8, (N, H, H) or (N, 3, H, H).
        chosen: (n,), the images to compare; none of them uniform.
        correlation: smallest correlation of a pair.

    Yields:
        Block by block, positions of both images in ``chosen``, the first smaller than the second, and the correlation
        of each pair, float32.
    """
    hashes = np.empty((len(chosen), 64), np.float32)
    pixels = np.empty((len(chosen), _HALF * _HALF), np.float32)
    frequency, place = np.arange(8)[:, None], np.arange(_HALF)
    cosines = np.cos(np.pi * frequency * (2 * place + 1) / IMAGE_SIZE).astype(np.float32)
    for part in _parts(len(chosen)):
        half = _at_48(_gray(images[chosen[part]])).reshape(-1, _HALF, 2, _HALF, 2).mean(axis=(2, 4), dtype=np.float32)
        spectrum = (cosines @ half @ cosines.T).reshape(-1, 64)
        hashes[part] = np.where(spectrum > np.median(spectrum, axis=1, keepdims=True), 1, -1)
        flat = half.reshape(len(half), -1) - half.mean(axis=(1, 2))[:, None]
        pixels[part] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    for part in _parts(len(chosen)):
        for columns in _parts(len(chosen), _COLUMNS, part.start):
            # The product of two rows of plus and minus ones is 64 minus twice the number of differing bits.
            close = np.triu(hashes[part] @ hashes[columns].T >= 64 - 2 * HASH_DISTANCE, part.start - columns.start + 1)
            if np.count_nonzero(close) > _DENSE * close.size:
                correlations = pixels[part] @ pixels[columns].T
                one, other = np.nonzero(close & (correlations >= correlation))
                yield one + part.start, other + columns.start, correlations[one, other]
                continue
            one, other = np.nonzero(close)
            one, other = one + part.start, other + columns.start
            for chunk in _parts(len(one), 16 * _BLOCK):
                values = np.einsum("ij,ij->i", pixels[one[chunk]], pixels[other[chunk]])
                kept = values >= correlation
                yield one[chunk][kept], other[chunk][kept], values[kept]


def leaked(faces: Faces, duplicates: Duplicates, usage: int) -> pd.DataFrame:
    """Count the images of a usage that have a duplicate in the training images.

    Returns:
        Indexed by class: ``images`` of the usage, ``exact`` with an identical one there, ``near`` with an identical or
        a nearly identical one.
    """
    findings = duplicates.findings
    known = findings[np.array([faces.parts[0] in parts.split() for parts in findings["twin_in"]], bool)]
    positions, in_usage = np.arange(len(faces)), faces.usage == usage
    masks = {
        "images": in_usage,
        "exact": in_usage & np.isin(positions, known.index[known["kind"] == "exact"]),
        "near": in_usage & np.isin(positions, known.index),
    }
    return pd.DataFrame({name: faces.count(mask) for name, mask in masks.items()}, index=faces.classes)


def usage_pairs(faces: Faces) -> list[tuple[int, int]]:
    """Every usage that occurs, paired with each one before it."""
    present = np.unique(faces.usage).tolist()
    return [(usage, other) for usage in present for other in present if other < usage]


def overlap_key(faces: Faces, usage: int, other: int) -> str:
    """End of the key in ``counts`` for images of ``usage`` that have a duplicate in ``other``."""
    return f"{faces.parts[usage]}/in/{faces.parts[other]}"


def _gray(images: np.ndarray) -> np.ndarray:
    """Images (n, H, H) as they are; the mean of the channels of (n, 3, H, H)."""
    return images if images.ndim == 3 else images.mean(axis=1, dtype=np.float32)


def _at_48(images: np.ndarray) -> np.ndarray:
    """Gray images of any side as (n, 48, 48), the size that thresholds are for."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if images.shape[1:] == size:
        return images
    shrinks = images.shape[1] > IMAGE_SIZE
    return np.stack(
        [cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR) for image in images]
    )


def _parts(length: int, size: int = _BLOCK, begin: int = 0) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(begin, length, size))


def _other_copies(copies: np.ndarray, unique: np.ndarray, usage: np.ndarray) -> np.ndarray:
    """Whether each image has an identical one in each usage, itself not counted: bool, (n, usages).

    Args:
        copies: (distinct images, usages), number of copies.
        unique: (n,), number of each image among the distinct ones.
        usage: (n,).
    """
    others = copies[unique]
    others[np.arange(len(unique)), usage] -= 1
    return others > 0


class _Neighbours:
    """Pairs of distinct images, added block by block in memory for the images alone.

    Args:
        copies: (distinct images, usages), number of copies.

    Attributes:
        pairs: their number.
        around: bool, (distinct images, usages), whether a usage contains a neighbour of an image.
    """

    def __init__(self, copies: np.ndarray) -> None:
        self.pairs = 0
        self.around = np.zeros(copies.shape, bool)
        self._present = copies > 0
        self._edges = np.empty((2, 0), np.int64)

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        self.pairs += len(one)
        for usage, present in enumerate(self._present.T):
            self.around[one[present[other]], usage] = True
            self.around[other[present[one]], usage] = True
        self._edges = np.concatenate([self._edges, [one, other]], axis=1)
        if self._edges.shape[1] > 4 * len(self.around):
            groups = self.groups()  # whose pairs are as well those of each image with the first of its group
            first = np.unique(groups, return_index=True)[1][groups]
            joined = np.flatnonzero(first != np.arange(len(first)))
            self._edges = np.stack([joined, first[joined]])

    def groups(self) -> np.ndarray:
        """The connected group of each distinct image."""
        number, pairs = len(self.around), self._edges.shape[1]
        graph = coo_array((np.ones(pairs, bool), tuple(self._edges)), shape=(number, number))
        return connected_components(graph, directed=False)[1]


class _BestPairs:
    """The pairs with the highest correlation, of those in different usages where there are any."""

    def __init__(self, usage: np.ndarray) -> None:
        self._usage = usage
        self._found = {False: 0, True: 0}
        self._pairs = pd.DataFrame({"one": [], "other": [], "correlation": [], "apart": []})
        self._pairs = self._pairs.astype({"one": int, "other": int, "correlation": np.float32, "apart": bool})

    def add(self, one: np.ndarray, other: np.ndarray, similarity: np.ndarray) -> None:
        apart = self._usage[one] != self._usage[other]
        self._found[True] += int(np.count_nonzero(apart))
        self._found[False] += int(np.count_nonzero(~apart))
        new = pd.DataFrame({"one": one, "other": other, "correlation": similarity, "apart": apart})
        self._pairs = pd.concat([self._pairs, new], ignore_index=True)
        if len(self._pairs) > 2 * MOST_PAIRS:
            self._pairs = self._pairs.sort_values(["apart", "correlation"], ascending=False, kind="stable").head(
                MOST_PAIRS
            )

    def chosen(self) -> tuple[pd.DataFrame, int]:
        """The pairs, in descending order of correlation, and the number of those that they are the best of."""
        in_different = self._found[True] > 0
        pairs = self._pairs[self._pairs["apart"] == in_different].drop(columns="apart")
        best = pairs.sort_values("correlation", ascending=False, kind="stable").head(MOST_PAIRS)
        return best, self._found[in_different]


def _groups(faces: Faces, group: np.ndarray, around: np.ndarray) -> pd.DataFrame:
    """The images that have a duplicate in any usage, by group: group (from 1), conflict, twin_in; indexed by image.

    Args:
        faces: the data.
        group: (n,) number of each image's group.
        around: (n, usages) whether it has a duplicate in that usage.
    """
    members = np.flatnonzero(around.any(axis=1))
    table = pd.DataFrame({"group": group[members], "label": faces.labels[members]}, index=members)
    table["conflict"] = (table.groupby("group")["label"].transform("nunique") > 1).astype(int)
    table["group"] = pd.factorize(table["group"])[0] + 1
    table["twin_in"] = [" ".join(np.array(faces.parts)[row]) for row in around[members]]
    return table.sort_values("group", kind="stable")[["group", "conflict", "twin_in"]]


def _count_groups(kind: str, faces: Faces, groups: pd.DataFrame, around: np.ndarray) -> dict[str, int]:
    conflicting = groups[groups["conflict"] == 1]
    counts = {
        f"{kind}/groups": groups["group"].nunique(),
        f"{kind}/images": len(groups),
        f"{kind}/conflicting_groups": conflicting["group"].nunique(),
        f"{kind}/conflicting_images": len(conflicting),
    }
    for usage, other in usage_pairs(faces):
        counts[f"{kind}/{overlap_key(faces, usage, other)}"] = int(around[faces.usage == usage, other].sum())
    return counts


def _findings(faces: Faces, by_kind: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The tables of each kind below one another, with id, usage, label and kind in front."""
    findings = pd.concat([table.assign(kind=kind) for kind, table in by_kind.items()])
    index = findings.index.to_numpy(np.int64)
    findings.insert(0, "id", faces.ids[index])
    findings.insert(1, "usage", np.array(faces.parts)[faces.usage[index]])
    findings.insert(2, "label", np.array(faces.classes)[faces.labels[index]])
    findings.insert(3, "kind", findings.pop("kind"))
    return findings
