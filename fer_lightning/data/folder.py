"""Evaluation on any labelled images in folders ``<emotion>/<image>``."""

import logging
import reprlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]

from fer_lightning.data.archives import Container, Folder, Tar, Zip, is_tar, open_file, readable_errors
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces, count_classes, emotion_index
from fer_lightning.data.images import IMAGE_SUFFIXES, image_ids, read_faces
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

ACCEPTED = "a folder, .zip or .tar.gz of <emotion>/<image>, or a folder inside of one (images.zip/test)"
NOTHING = ("", "null", "~")
"""Values in a mapping file that exclude a folder."""


def load(path: str | None, classes: str | None = None) -> Faces:
    """Read every image of a tree ``<emotion>/<image>``, of any size and colour; all have the usage ``Test``.

    The emotion of an image is the name of the folder that contains it, or a synonym, in any case, either directly or
    through a mapping file. All emotion folders must have the same parent. Emotions without images are logged.

    Args:
        path: the folder, zip or tar; or a folder inside one, such as ``images.zip/test``.
        classes: the mapping file, see ``read_mapping``.

    Returns:
        Faces sorted by id, which is the path of the image in the tree.

    Raises:
        UserError: a file or folder is missing, damaged, not an image or of an unknown emotion; names it.
    """
    if path is None or not path.strip():
        raise UserError(f"data=folder: data.path is missing; give data.path=DIR, {ACCEPTED}")
    source, inside = _archive_and_folder(Path(path).expanduser())
    if not source.exists():
        raise UserError(f"data.path={path} does not exist: give {ACCEPTED}")
    mapping = read_mapping(Path(classes).expanduser()) if classes else {}
    with readable_errors(source):
        faces = _read(_container(source), mapping, inside)
    counts = dict(zip(EMOTIONS, count_classes(faces.labels), strict=True))
    log.info("Found %d images: %s", len(faces), ", ".join(f"{n:,} {name}" for name, n in counts.items() if n))
    missing = [name for name, n in counts.items() if not n]
    if missing:
        log.info(
            "No images of %s: no recall there; balanced accuracy and macro F1 average over the classes with images "
            "(macro F1 also over those that the model answers)",
            ", ".join(missing),
        )
    return faces


def read_mapping(path: Path) -> dict[str, str | None]:
    """Read a YAML or JSON file that maps folder names to emotions.

    Returns:
        Folder name in lower case -> one of ``EMOTIONS``, or None for a folder to exclude.

    Raises:
        UserError: the file cannot be read, is not a mapping, or contains an unknown emotion.
    """
    try:
        # BaseLoader keeps every value a string: a folder may be named 0 or no.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise UserError(f"data.classes={path}: cannot be read ({error.strerror}); give a YAML or JSON file") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or not content:
        raise UserError(f'data.classes={path}: no mapping; write a line for each folder, such as "rage: angry"')
    mapping: dict[str, str | None] = {}
    for name, emotion in content.items():
        wanted = emotion.strip().lower() if isinstance(emotion, str) else emotion
        if wanted not in (*EMOTIONS, *NOTHING):
            raise UserError(
                f"data.classes={path}: {name}: {reprlib.repr(emotion)} is no emotion; "
                f"accepted are {', '.join(EMOTIONS)}, or null for none"
            )
        mapping[str(name).lower()] = None if wanted in NOTHING else str(wanted)
    return mapping


def _archive_and_folder(path: Path) -> tuple[Path, str]:
    """Split ``images.zip/test`` into archive and folder; any other path is returned as is, with an empty folder."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _container(source: Path) -> Container:
    if source.is_dir():
        return Folder(source)
    with open_file(source) as stream:
        start = stream.read(4)
    if start == b"PK\x03\x04":
        return Zip(source)
    if is_tar(source):
        return Tar(source)
    raise UserError(f"data.path={source} is no folder and no archive: give {ACCEPTED}")


def _read(container: Container, mapping: Mapping[str, str | None], inside: str) -> Faces:
    places = _locate(container, mapping, inside)
    images = read_faces(container, list(places))
    ids, labels = image_ids(container, list(places)), np.array(list(places.values()))
    order = np.argsort(ids, kind="stable")
    usage = np.full(len(ids), USAGES.index("Test"))
    return Faces.from_arrays(images[order], labels[order], usage, ids[order], kind=f"labelled {container.form}")


def _locate(container: Container, mapping: Mapping[str, str | None], inside: str) -> dict[str, int]:
    """Map the path of every usable image below the folder ``inside`` to its label, in the container's order."""
    places: dict[str, int] = {}
    tops: dict[str, str] = {}
    loose, left_out = 0, 0
    for name in container.names():
        if not name.lower().endswith(IMAGE_SUFFIXES) or not name.startswith(inside and f"{inside}/"):
            continue
        *above, folder, _ = ("", *name.split("/"))
        if not folder:
            loose += 1
            continue
        emotion = mapping.get(folder.lower(), folder)
        if emotion is None:
            left_out += 1
            continue
        label = emotion_index(emotion, numbers=False)  # of whatever data set: 0 may be another emotion there
        if label is None:
            raise UserError(
                f"{container.path}: unknown emotion folder {folder!r} (of {name}); accepted are {', '.join(EMOTIONS)}, "
                f'or give data.classes=FILE with a line such as "{folder}: happy" ("{folder}: null" leaves it out)'
            )
        places[name] = label
        tops.setdefault("/".join(above[1:]) or ".", name)
    if len(tops) > 1:
        found = sorted(tops)
        named = ", ".join(found[:4])
        raise UserError(
            f"{container.path} holds several trees of emotions (in {named}): give one of them, such as "
            f"data.path={container.path / found[-1]}"
        )
    if not places:
        hint = f"{loose} images lie in no folder; " if loose else ""
        raise UserError(f"{container.path / inside}: no image to score: {hint}give {ACCEPTED}")
    for count, what in ((loose, "that lie in no folder"), (left_out, "of the folders that data.classes leaves out")):
        if count:
            log.info("Ignored %d images %s", count, what)
    return places
