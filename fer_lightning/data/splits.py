"""Train, validation and test splits as pure functions of (faces, seed)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fer_lightning.data.faces import USAGES, Faces, class_noun
from fer_lightning.data.profile import Profile, thin
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

NATURAL = Profile()

PAPER_PER_CLASS = 4000
"""Images per emotion in the paper's protocol; disgust has only 547 in all."""

PAPER_BALANCED_PER_CLASS = 500
"""Images per emotion in the paper's undersampled set."""

FALLBACK_VAL_FRACTION = 0.1
"""Share of the training images used for validation when the data have no PublicTest images."""

FALLBACK_TEST_FRACTION = 0.1
"""Share of the training images used for testing when the data have no other images to test on."""

SHOWN_CLASSES = 20
"""Classes up to which each one's images are counted in the log."""


@dataclass(frozen=True)
class Split:
    """Sorted int64 indices into a ``Faces``.

    Attributes:
        train: training images; contains every class, except in ``whole``.
        val: images for model selection; empty if the protocol has none.
        tests: ``test`` is the reported set; a protocol may add others. ``<name>_dedup`` is the same set without
            images that are pixel-identical to one in ``train``.
    """

    train: np.ndarray
    val: np.ndarray
    tests: dict[str, np.ndarray]


def whole(faces: Faces) -> Split:
    """Use every image as a test image, to evaluate a model that was trained on other data."""
    nothing = np.array([], dtype=np.int64)
    return Split(train=nothing, val=nothing, tests={"test": np.arange(len(faces))})


def official(
    faces: Faces,
    seed: int,
    val_fraction: float | None = None,
    train_size: int | None = None,
    drop_duplicates: str | None = None,
    profile: Profile = NATURAL,
) -> Split:
    """The competition's split: train on Training, select on PublicTest, report PrivateTest.

    If the data do not distinguish PublicTest from PrivateTest, all of ``test/`` is the test set and the validation
    set is cut from the training images. If they have no test images, the test set is cut from the training images too:
    the same one for every seed, so that runs can be compared.

    Args:
        faces: the data.
        seed: seed of the validation cut and of the training subset.
        val_fraction: validate on this share of Training instead and leave PublicTest unused; stratified, with
            pixel-identical images kept on the same side.
        train_size: keep a stratified random subset of exactly this many training images, drawn after all else.
        drop_duplicates: ``train`` removes training images that are pixel-identical to an image of a test set.
        profile: class sizes that the training images are thinned to, after all else.

    Raises:
        UserError: there are no training images, an emotion is missing, or an argument is out of range.
    """
    by_usage = {name: np.flatnonzero(faces.usage == number) for number, name in enumerate(USAGES)}
    train, val = by_usage["Training"], by_usage["PublicTest"]
    test = np.union1d(by_usage["PrivateTest"], by_usage["Test"])
    if len(train) == 0:
        raise UserError("split=official needs Training images, and the data have none: use split=kfold")
    if len(test) == 0:
        train, test = _cut(faces, train, FALLBACK_TEST_FRACTION, _stream(0, "test"))
        if len(test) == 0:
            raise UserError("split=official needs test images, or two images of a class to cut them from Training")
        published = class_noun(faces.classes) == "emotion"
        log.warning(
            "The data name no test images: testing on %d images cut from the training images%s",
            len(test),
            "; scores are not comparable with published ones" * published,
        )
    if val_fraction is None and len(val) == 0:
        val_fraction = FALLBACK_VAL_FRACTION
        log.info("The data name no validation images: validating on %g of the training images", val_fraction)
    if val_fraction is not None:
        train, val = _cut_val(faces, train, val_fraction, seed)
    return _finish(faces, seed, train, val, {"test": test}, train_size, drop_duplicates, profile)


def count_parts(faces: Faces, split: Split) -> str:
    """The images of each class in each part: ``happy 12+3+3, ...``; of more than 20 classes their range."""
    parts = {"train": split.train, "val": split.val, "test": split.tests["test"]}
    counts = np.array([faces.count(rows) for rows in parts.values()])
    if len(faces.classes) <= SHOWN_CLASSES:
        return ", ".join(
            f"{name} {'+'.join(f'{n:,}' for n in column)}" for name, column in zip(faces.classes, counts.T, strict=True)
        )
    return "; ".join(
        f"{part} {row.min():,} to {row.max():,} (median {np.median(row):,g})"
        for part, row in zip(parts, counts, strict=True)
    )


def paper(
    faces: Faces,
    seed: int,
    subset: str = "large",
    val_fraction: float | None = None,
    train_size: int | None = None,
    drop_duplicates: str | None = None,
    profile: Profile = NATURAL,
) -> Split:
    """The protocol of the paper on EfficientNet and class imbalance, as far as its reported numbers specify it.

    All images are pooled, whatever their usage. From each emotion, min(n, 4000) images are sampled and split 70/30:
    17,182 train and 7,365 test (``large``). The undersampled subset (``balanced``) consists of the first 350
    training and 150 test images of each emotion of ``large``: 2,450 and 1,050. Because the subsets are nested, a
    model trained on either can be scored on both test sets: ``tests`` always has ``test_large`` and
    ``test_balanced``, one of which is also ``test``, each with its ``_dedup``. On smaller data, the balanced subset
    takes as many images of each emotion as the rarest one has.

    The protocol has no validation set: ``val`` is empty unless ``val_fraction`` cuts one from ``train``. Because the
    split is random, about 7.6 % of its test images have a pixel-identical image in ``train``; ``test_dedup``
    excludes them.

    Args:
        faces: the data.
        seed: seed of the sample, the split and all other draws.
        subset: ``large`` or ``balanced``.
        val_fraction: as in ``official``; ``train_size``, ``drop_duplicates`` and ``profile`` too.

    Raises:
        UserError: an unknown subset, an emotion with fewer than two images, or an argument out of range.
    """
    if subset not in ("large", "balanced"):
        raise UserError(f"split.subset={subset}: no such subset; accepted: large, balanced")
    counts = faces.count()
    rarest = min(range(len(counts)), key=counts.__getitem__)
    if counts[rarest] < 2:
        raise UserError(
            f"split=paper needs two images or more of each {class_noun(faces.classes)}, and the data have"
            f" {counts[rarest]} of {faces.classes[rarest]}"
        )
    balanced_size = min(PAPER_BALANCED_PER_CLASS, counts[rarest])
    balanced_train_size = _seventy_percent(balanced_size)
    rng = _stream(seed, "paper")
    trains: dict[str, list[np.ndarray]] = {"large": [], "balanced": []}
    tests: dict[str, list[np.ndarray]] = {"large": [], "balanced": []}
    for label in range(len(counts)):
        sample = rng.permutation(np.flatnonzero(faces.labels == label))[:PAPER_PER_CLASS]
        train, test = np.split(sample, [_seventy_percent(len(sample))])
        trains["large"].append(train)
        tests["large"].append(test)
        trains["balanced"].append(train[:balanced_train_size])
        tests["balanced"].append(test[: balanced_size - balanced_train_size])
    train, val = np.concatenate(trains[subset]), np.array([], np.int64)
    if val_fraction is not None:
        train, val = _cut_val(faces, train, val_fraction, seed)
    large, balanced = np.concatenate(tests["large"]), np.concatenate(tests["balanced"])
    named = {"test": large if subset == "large" else balanced, "test_large": large, "test_balanced": balanced}
    _warn_of_persons(faces, train, named["test"])
    return _finish(faces, seed, train, val, named, train_size, drop_duplicates, profile)


def kfold(
    faces: Faces,
    seed: int,
    folds: int = 5,
    fold: int = 0,
    val_fraction: float | None = None,
    train_size: int | None = None,
    drop_duplicates: str | None = None,
    profile: Profile = NATURAL,
) -> Split:
    """Stratified cross-validation over all images, with pixel-identical images always in the same fold.

    Fold ``fold`` is the test set, the next fold is the validation set, and the rest is the training set.

    Args:
        faces: the data.
        seed: seed of the folds; the runs of one cross-validation must share it.
        folds: number of folds.
        fold: index of the test fold, from 0.
        val_fraction: validate on this share of all other folds instead; as in ``official``.
        train_size: as in ``official``.
        drop_duplicates: as in ``official``.
        profile: as in ``official``.

    Raises:
        UserError: an argument out of range, fewer different images or persons than folds, or an emotion with fewer
            images than folds.
    """
    least = 3 if val_fraction is None else 2
    if folds < least:
        raise UserError(
            f"split.folds={folds}: out of range; accepted: {least} or more"
            + (" (one tests, one validates, the rest trains)" if val_fraction is None else "")
        )
    if not 0 <= fold < folds:
        raise UserError(f"split.fold={fold}: out of range; accepted: 0 to {folds - 1} (split.folds={folds})")
    if (groups := len(np.unique(_groups(faces)))) < folds:
        noun = "different images" if faces.groups is None else "persons"
        raise UserError(f"split.folds={folds}: the data have {groups} {noun}, each in one fold; give {groups} or fewer")
    counts = faces.count()
    rarest = min(range(len(counts)), key=counts.__getitem__)
    if counts[rarest] < folds:
        raise UserError(
            f"split.folds={folds} needs as many images of each {class_noun(faces.classes)}, and the data have"
            f" {counts[rarest]} of {faces.classes[rarest]}"
        )
    targets = np.tile(np.array(counts) / folds, (folds, 1))
    fold_of = _deal(faces.labels, _groups(faces), targets, _stream(seed, "folds"))
    test = np.flatnonzero(fold_of == fold)
    if val_fraction is None:
        val_fold = (fold + 1) % folds
        val = np.flatnonzero(fold_of == val_fold)
        train = np.flatnonzero((fold_of != fold) & (fold_of != val_fold))
    else:
        train, val = _cut_val(faces, np.flatnonzero(fold_of != fold), val_fraction, seed)
    return _finish(faces, seed, train, val, {"test": test}, train_size, drop_duplicates, profile)


def _warn_of_persons(faces: Faces, train: np.ndarray, test: np.ndarray) -> None:
    if faces.groups is not None:
        log.warning(
            "split=paper draws images, not persons: %d persons are in train and in test; split=kfold keeps them apart",
            len(np.intersect1d(faces.groups[train], faces.groups[test])),
        )


def _finish(
    faces: Faces,
    seed: int,
    train: np.ndarray,
    val: np.ndarray,
    tests: dict[str, np.ndarray],
    train_size: int | None,
    drop_duplicates: str | None,
    profile: Profile,
) -> Split:
    """Drop duplicates, draw the training subset, thin it, add the ``_dedup`` test sets, and sort all indices.

    Raises:
        UserError: a class has no training image, or there is nothing to test on.
    """
    if len(tests["test"]) == 0:
        raise UserError("The test split has no image: give more images, or fewer folds")
    if drop_duplicates == "train":
        leaks = np.isin(faces.twins[train], faces.twins[np.concatenate(list(tests.values()))])
        train = train[~leaks]
        log.info("Removed %d training images that have an exact twin in a test set", leaks.sum())
    if train_size is not None:
        train = _subset(faces, train, train_size, _stream(seed, "train_size"))
    train = thin(faces, train, profile, seed)
    missing = [name for name, count in zip(faces.classes, faces.count(train), strict=True) if not count]
    if missing:
        noun = class_noun(faces.classes)
        raise UserError(f"The training split has no image of {', '.join(missing)}: every {noun} is needed")
    if len(validated := np.flatnonzero(faces.count(val))) == 1:
        log.warning(
            "All %d validation images are of %s: their scores cannot choose a model",
            len(val),
            faces.classes[validated[0]],
        )
    known = faces.twins[train]
    dedup = {f"{name}_dedup": test[~np.isin(faces.twins[test], known)] for name, test in tests.items()}
    ordered = {"test": tests["test"], "test_dedup": dedup["test_dedup"], **tests, **dedup}
    return Split(_sorted(train), _sorted(val), {name: _sorted(indices) for name, indices in ordered.items()})


def _cut(faces: Faces, pool: np.ndarray, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split a pool into (rest, cut): stratified, duplicates together, at least one image of each class with two."""
    counts = np.array(faces.count(pool))
    cut = np.where(counts > 1, np.clip(fraction * counts, 1, counts - 1), 0)
    part = _deal(faces.labels[pool], _groups(faces)[pool], np.stack([counts - cut, cut]), rng)
    return pool[part == 0], pool[part == 1]


def _cut_val(faces: Faces, train: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split training images into (rest, validation); see ``_cut``."""
    train, val = _cut(faces, train, fraction, _stream(seed, "val"))
    if len(val) == 0:
        log.warning("No validation image can be cut: the training images are of one person, or alike")
    return train, val


def _groups(faces: Faces) -> np.ndarray:
    return faces.twins if faces.groups is None else faces.groups


def _deal(labels: np.ndarray, groups: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign images to parts so that the images of a group stay together.

    Greedy: groups are processed from large to small, in random order among equal sizes; each is assigned to the part
    that is furthest below its targets for the group's classes. If every group has one image, each part ends within
    one image of its target in every class. No part with a target stays empty where there are groups enough.

    Args:
        labels: (n,) class of each image.
        groups: (n,) group number of each image.
        targets: (parts, classes) target number of images; sums to the class counts over parts.
        rng: draws the order.

    Returns:
        int64, (n,), part of each image.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    lacking = targets.astype(np.float64)
    part_of = np.empty(len(sizes), np.int64)
    for group in order:
        own = labels[members[group]]
        need = lacking[:, own].sum(axis=1)
        # Parts of equal size tie often; without this second key the first part would get every remainder.
        tied = np.flatnonzero(need >= need.max() - 1e-9)
        part = tied[np.argmax(lacking[tied].sum(axis=1))]
        part_of[group] = part
        np.subtract.at(lacking[part], own, 1)
    for empty in np.setdiff1d(np.flatnonzero(targets.sum(axis=1)), part_of):
        spare = order[np.bincount(part_of)[part_of[order]] > 1]
        if len(spare):  # the smallest group of a part that keeps others
            part_of[spare[-1]] = empty
    return part_of[group_of]


def _subset(faces: Faces, pool: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A stratified random subset of exactly ``size`` images."""
    labels, counts = faces.labels, faces.count(pool)
    present = sum(count > 0 for count in counts)
    if not present <= size <= len(pool):
        raise UserError(
            f"split.train_size={size}: out of range; accepted: {present} (one of each {class_noun(faces.classes)}) to "
            f"{len(pool)} (all that there are)"
        )
    chosen = []
    for label, count in enumerate(apportion(size, counts, least=1)):
        chosen.append(rng.permutation(pool[labels[pool] == label])[:count])
    return np.concatenate(chosen)


def apportion(total: int, weights: Sequence[int], least: int) -> list[int]:
    """Integers in proportion to ``weights`` that sum to ``total``, each at least ``least``, or 0 for a weight of 0.

    Largest-remainder method, applied after the minimum. If ``total`` is at most the sum of the weights and ``least``
    at most the smallest positive weight, no share exceeds its weight.
    """
    wanted = np.array(weights, np.float64) * total / sum(weights)
    shares = np.where(wanted > 0, np.maximum(np.floor(wanted), least), 0).astype(np.int64)
    while shares.sum() != total:
        step = 1 if shares.sum() < total else -1
        movable = (wanted > 0) & ((step > 0) | (shares > least))
        gap = np.where(movable, step * (wanted - shares), -np.inf)
        shares[np.argmax(gap)] += step
    return shares.tolist()


def _seventy_percent(count: int) -> int:
    return 7 * count // 10


def _sorted(indices: np.ndarray) -> np.ndarray:
    return np.sort(indices).astype(np.int64)


def _stream(seed: int, purpose: str) -> np.random.Generator:
    """A separate generator per purpose, so that one option never changes the random draws of another."""
    return np.random.default_rng([seed, *purpose.encode()])
