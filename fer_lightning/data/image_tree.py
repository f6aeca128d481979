"""Image files sorted into folders: ``train/<emotion>/<file>`` and ``test/<emotion>/<file>``."""

import logging
import re
from typing import NamedTuple

import numpy as np

from fer_lightning.data.archives import Container
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces
from fer_lightning.data.images import IMAGE_SUFFIXES, read_faces
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

PARTS = ("train", "test")

_PREFIX = re.compile(r"(Training|PublicTest|PrivateTest)_", re.IGNORECASE)
_PREFIX_USAGE = {name.lower(): number for number, name in enumerate(USAGES[:3])}


class _Entry(NamedTuple):
    name: str
    id: str
    part: str
    label: int
    prefix: int | None


def has_image_tree(names: list[str]) -> bool:
    """Whether any file lies where an image of a train/ or test/ tree would."""
    return any(_split(name) is not None for name in names)


def read_image_tree(container: Container) -> Faces:
    """Read every image of a Kaggle archive or of a folder copy without its file-name prefixes.

    The usage comes from the file-name prefix (``PublicTest_123.jpg``). Where ``test/`` has no prefixes at
    all, its images get the usage ``Test``. Images of another size or colour are converted to 48x48 gray, with
    a logged count.

    Returns:
        Faces sorted by id, the path from ``train/`` or ``test/`` on: equal for a zip and a folder of equal
        content.

    Raises:
        UserError: naming the file or folder, for unknown emotions, files that are no images and mixed
            layouts.
    """
    entries = _locate(container)
    prefixed = _check_prefixes(entries, container)
    images = read_faces(container, [entry.name for entry in entries])
    ids = np.array([entry.id for entry in entries])
    labels = np.array([entry.label for entry in entries])
    usage = np.array([_usage(entry) for entry in entries])
    order = np.argsort(ids, kind="stable")
    kind = "Kaggle archive" if prefixed else "copy without Training_/PublicTest_/PrivateTest_ file names"
    return Faces.from_arrays(images[order], labels[order], usage[order], ids[order], kind=f"{kind} ({container.form})")


def _split(name: str) -> tuple[str, str, str, str] | None:
    """(top folder, train or test, emotion folder, file) of a path, with at most one top folder."""
    top, *rest = name.split("/") if name.count("/") == 3 else ("", *name.split("/"))
    if len(rest) != 3 or rest[0].lower() not in PARTS:
        return None
    return top, rest[0], rest[1], rest[2]


def _locate(container: Container) -> list[_Entry]:
    labels = {emotion: label for label, emotion in enumerate(EMOTIONS)}
    entries, tops, ignored = [], set(), 0
    for name in container.names():
        place = _split(name)
        if place is None:
            ignored += name.lower().endswith(IMAGE_SUFFIXES)
            continue
        top, part, emotion, file = place
        if emotion.lower() not in labels:
            raise UserError(
                f"{container.path}: unknown emotion folder {part}/{emotion}; accepted are {', '.join(EMOTIONS)}"
            )
        tops.add(top)
        match = _PREFIX.match(file)
        prefix = _PREFIX_USAGE[match[1].lower()] if match else None
        entries.append(_Entry(name, f"{part}/{emotion}/{file}", part.lower(), labels[emotion.lower()], prefix))
    if len(tops) > 1:
        places = ", ".join(top or "." for top in sorted(tops))
        raise UserError(f"{container.path} holds several train/ and test/ trees (in {places}): give only one")
    if ignored:
        log.info("Ignored %d images outside train/<emotion>/ and test/<emotion>/", ignored)
    return entries


def _check_prefixes(entries: list[_Entry], container: Container) -> bool:
    """Whether the test images tell their usage; some that do beside some that do not are refused."""
    test = [entry for entry in entries if entry.part == "test"]
    for part in PARTS:
        if all(entry.part != part for entry in entries):
            raise UserError(f"{container.path} has no images under {part}/<emotion>/: both train/ and test/ are needed")
    without = [entry for entry in test if entry.prefix is None]
    if without and len(without) < len(test):
        raise UserError(
            f"{container.path}: {len(without)} of {len(test)} files under test/ lack the prefix PublicTest_"
            f" or PrivateTest_ (the first: {without[0].id}); give all of them a prefix, or none"
        )
    elsewhere = sum(entry.prefix is not None and (entry.prefix == 0) != (entry.part == "train") for entry in entries)
    if elsewhere:
        log.info("%d images lie in another folder than their file name says; the file name decides", elsewhere)
    return not without


def _usage(entry: _Entry) -> int:
    if entry.prefix is not None:
        return entry.prefix
    return USAGES.index("Training" if entry.part == "train" else "Test")
