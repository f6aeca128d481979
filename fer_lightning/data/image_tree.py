"""Images in the folders ``train/<emotion>/<file>`` and ``test/<emotion>/<file>``."""

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
    """Whether any path has the form ``train/<emotion>/<file>`` or ``test/<emotion>/<file>``."""
    return any(_split(name) is not None for name in names)


def read_image_tree(container: Container) -> Faces:
    """Read every image of a Kaggle archive, or of a copy without the file-name prefixes.

    The usage comes from the file-name prefix (``PublicTest_123.jpg``). If no file under ``test/`` has a prefix, the
    images there get the usage ``Test``. Images of another size or colour are converted to 48x48 gray and their
    number is logged.

    Returns:
        Faces sorted by id, which is the path from ``train/`` or ``test/`` on: a zip and a folder with the same
        content give the same ids.

    Raises:
        UserError: an unknown emotion, a file that is not an image, or a mixed layout; names the file or folder.
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
    """Split a path into (top folder or "", train or test, emotion folder, file); None for any other layout."""
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
    """Whether all test images have a usage prefix.

    Raises:
        UserError: only some have one, or train/ or test/ is empty.
    """
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
        log.info("%d images are in another folder than their file-name prefix states; the prefix is used", elsewhere)
    return not without


def _usage(entry: _Entry) -> int:
    if entry.prefix is not None:
        return entry.prefix
    return USAGES.index("Training" if entry.part == "train" else "Test")
