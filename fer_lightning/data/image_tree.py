"""Images in folders: ``train/<emotion>/<file>`` and ``test/<emotion>/<file>``, or ``<emotion>/<file>`` alone."""

import logging
import re
from typing import NamedTuple

import numpy as np

from fer_lightning.data.archives import Container
from fer_lightning.data.faces import EMOTIONS, Faces, ImageForm, emotion_index
from fer_lightning.data.images import IMAGE_SUFFIXES, image_ids, read_images
from fer_lightning.data.pixel_csv import USAGE_NAMES
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

_PREFIX = re.compile(r"(Training|PublicTest|PrivateTest)_", re.IGNORECASE)


class _Entry(NamedTuple):
    name: str
    place: str
    part: str
    label: int
    prefix: int | None

    @property
    def usage(self) -> int:
        """From the prefix of the file's name, else from its folder; index into ``USAGES``."""
        return self.prefix if self.prefix is not None else USAGE_NAMES.get(self.part, 0)


def images_of_tree(names: list[str]) -> list[str]:
    """The paths of the form ``train/<emotion>/<file>``, with any folders above; also val/, test/ and the like."""
    return [name for name in names if _split(name) is not None]


def images_of_emotions(names: list[str]) -> list[str]:
    """The images of the form ``<emotion>/<file>``, with any folders above; numbers count where all seven are there."""
    folders = {name: f"/{name}".split("/")[-2] for name in names if name.lower().endswith(IMAGE_SUFFIXES)}
    named = [name for name, folder in folders.items() if emotion_index(folder, numbers=False) is not None]
    all_numbers = set(folders.values()) == {str(number) for number in range(len(EMOTIONS))}
    return named or (list(folders) if all_numbers else [])


def read_image_tree(container: Container, names: list[str]) -> Faces:
    """Read every image of a Kaggle archive, or of a copy without the file-name prefixes.

    The usage comes from the file-name prefix (``PublicTest_123.jpg``), else from the folder: ``train``, ``val``
    (PublicTest) or ``test`` (usage ``Test``) or another of ``USAGE_NAMES``; images in no such folder are Training.
    Images of another size or colour are converted to 48x48 gray and their number is logged.

    Args:
        container: folder or archive with the images.
        names: from ``images_of_tree`` or ``images_of_emotions``.

    Returns:
        Faces sorted by id, which is the path from ``train/`` or ``test/`` on: a zip and a folder with the same
        content give the same ids.

    Raises:
        UserError: an unknown emotion, a file that is not an image, or a mixed layout; names the file or folder.
    """
    entries = _locate(container, names)
    prefixed = _check_prefixes(entries, container)
    ids = image_ids(container, [entry.place for entry in entries])
    form = ImageForm()
    images = read_images(
        container,
        [entry.name for entry in entries],
        range(len(entries)),
        form,
        np.empty((len(entries), *form.shape), np.uint8),
    )
    labels = np.array([entry.label for entry in entries])
    usage = np.array([entry.usage for entry in entries])
    order = np.argsort(ids, kind="stable")
    kind = "Kaggle archive" if prefixed else "copy without Training_/PublicTest_/PrivateTest_ file names"
    return Faces.from_arrays(images[order], labels[order], usage[order], ids[order], kind=f"{kind} ({container.form})")


def _split(name: str) -> tuple[str, str, str] | None:
    """Split a path into (folders above or "", train or test, emotion folder); None for any other layout."""
    *above, part, emotion, file = ("", "", *name.split("/"))
    if part.lower() not in USAGE_NAMES or (
        emotion_index(emotion) is None and not file.lower().endswith(IMAGE_SUFFIXES)
    ):
        return None
    return "/".join(above[2:]), part, emotion


def _locate(container: Container, names: list[str]) -> list[_Entry]:
    entries, tops, numbered = [], set(), False
    for name in names:
        *above, emotion, file = name.split("/")
        top, part, _ = _split(name) or ("/".join(above), "", emotion)
        place = f"{part}/{emotion}/{file}".removeprefix("/")
        label = emotion_index(emotion)
        if label is None:
            raise UserError(
                f"{container.path}: unknown emotion folder {part}/{emotion}; accepted: {', '.join(EMOTIONS)}"
            )
        numbered |= emotion.isdecimal()
        tops.add(top)
        match = _PREFIX.match(file)
        entries.append(_Entry(name, place, part.lower(), label, USAGE_NAMES[match[1].lower()] if match else None))
    if len(tops) > 1:
        places = ", ".join(top or "." for top in sorted(tops)[:4])
        raise UserError(f"{container.path} holds several train/ and test/ trees (in {places}): give only one")
    if numbered:
        order = ", ".join(f"{number} {emotion}" for number, emotion in enumerate(EMOTIONS))
        log.info("The emotion folders are numbers, read in FER-2013's order: %s", order)
    ignored = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in container.names()) - len(entries)
    if ignored > 0:
        log.info("Ignored %d images outside train/<emotion>/ and test/<emotion>/", ignored)
    return entries


def _check_prefixes(entries: list[_Entry], container: Container) -> bool:
    """Whether all test images have a usage prefix.

    Raises:
        UserError: only some have one, or no image is for training.
    """
    if all(entry.usage != 0 for entry in entries):
        raise UserError(f"{container.path} has no images under train/<emotion>/: give the training images too")
    test = [entry for entry in entries if entry.part == "test"]
    without = [entry for entry in test if entry.prefix is None]
    if without and len(without) < len(test):
        raise UserError(
            f"{container.path}: {len(without)} of {len(test)} files under test/ lack the prefix PublicTest_"
            f" or PrivateTest_ (the first: {without[0].place}); give all of them a prefix, or none"
        )
    elsewhere = sum(
        entry.prefix is not None and (entry.prefix == 0) != (USAGE_NAMES.get(entry.part, 0) == 0) for entry in entries
    )
    if elsewhere:
        log.info("%d images are in another folder than their file-name prefix states; the prefix is used", elsewhere)
    return all(entry.prefix is not None for entry in test or entries)
