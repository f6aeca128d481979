"""Layouts of the data sets that people have, and what is known of the real ones.

Sizes and counts are those of the publications or, where these give none, of the copies that are in use; a set that
differs is read and the difference logged.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fer_lightning.data.archives import Container
from fer_lightning.data.faces import USAGES, Faces
from fer_lightning.data.folder import RAFDB_LIST, Reading, in_folders, in_metadata, load_layout
from fer_lightning.data.images import IMAGE_SUFFIXES
from fer_lightning.data.label_table import LabelledFile
from fer_lightning.data.pixel_csv import USAGE_NAMES
from fer_lightning.presentation.words import listed
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

RAFDB_CODES = {
    "1": "surprise",
    "2": "fear",
    "3": "disgust",
    "4": "happy",
    "5": "sad",
    "6": "angry",
    "7": "neutral",
}
"""Li et al. 2017, readme of the basic set."""

AFFECTNET_CODES = {
    "0": "neutral",
    "1": "happy",
    "2": "sad",
    "3": "surprise",
    "4": "fear",
    "5": "disgust",
    "6": "angry",
    "7": "contempt",
}
"""Mollahosseini et al. 2019, readme: the first eight of its eleven categories."""

JAFFE_NAME = re.compile(r"(?P<subject>[A-Z]{2})\.(?P<code>AN|DI|FE|HA|NE|SA|SU)\d*\.\d+", re.IGNORECASE)
"""Lyons et al. 1998: KA.AN1.39.tiff."""

MAX_LIST = 2**22
"""Maximum bytes of RAF-DB's list of labels, which has 3e5."""

CK_NAME = re.compile(r"(?P<subject>S\d{3})_\d{3}_\d+", re.IGNORECASE)
"""Lucey et al. 2010: S010_004_00000017.png."""

LEAST_PERSONS = 3
"""One to train on, one to validate on, one to test on."""

Counts = Mapping[str, Mapping[str, int]]
"""Part (train, val, test, all) -> class -> images."""

RAFDB_COUNTS: Counts = {
    "train": dict(surprise=1290, fear=281, disgust=717, happy=4772, sad=1982, angry=705, neutral=2524),
    "test": dict(surprise=329, fear=74, disgust=160, happy=1185, sad=478, angry=162, neutral=680),
}
"""Li et al. 2017: 12,271 and 3,068 images."""

AFFECTNET_COUNTS: Counts = {
    "train": dict(
        neutral=74874, happy=134415, sad=25459, surprise=14090, fear=6378, disgust=3803, angry=24882, contempt=3750
    ),
    "val": dict.fromkeys(AFFECTNET_CODES.values(), 500),
}
"""Mollahosseini et al. 2019, table 3, without the categories none, uncertain and no face."""

CK48_COUNTS: Counts = {
    "all": dict(angry=135, contempt=54, disgust=177, fear=75, happy=207, sad=84, surprise=249),
}
"""Of the copy of 981 faces: the last three frames of each of CK+'s 327 labelled sequences (Lucey et al. 2010)."""

JAFFE_COUNTS: Counts = {"all": dict(angry=30, disgust=29, fear=32, happy=31, neutral=30, sad=31, surprise=30)}
"""Lyons et al. 1998: 213 images."""

RAFDB_ACCEPTED = "RAF-DB's basic set: Image/aligned with EmoLabel/list_patition_label.txt, or folders train|test/1 to 7"
AFFECTNET_ACCEPTED = (
    "AffectNet as folders train|val|test/<0 to 7, or the name of an emotion>, or train|val/metadata.csv of "
    "file_name,label beside the images"
)
CK48_ACCEPTED = "CK+48: folders of emotions"
JAFFE_ACCEPTED = "JAFFE: images such as KA.AN1.39.tiff, whose names hold the emotion's code"


def rafdb(path: str | None, **reading: object) -> Faces:
    """RAF-DB's basic set, 12,271 training and 3,068 test images: aligned with their list, or in folders 1 to 7."""
    return _load(_find_rafdb, path, RAFDB_ACCEPTED, reading, "RAF-DB", RAFDB_COUNTS)


def affectnet(path: str | None, **reading: object) -> Faces:
    """AffectNet with seven or eight emotions, as folders of names or of its numbers, or with ``metadata.csv``."""
    return _load(_find_affectnet, path, AFFECTNET_ACCEPTED, reading, "AffectNet", AFFECTNET_COUNTS)


def ck48(path: str | None, **reading: object) -> Faces:
    """CK+48: 981 faces of 48x48 pixels in folders of seven emotions, contempt among them."""
    return _load(in_folders, path, CK48_ACCEPTED, reading, "CK+48", CK48_COUNTS, CK_NAME)


def jaffe(path: str | None, **reading: object) -> Faces:
    """JAFFE: 213 images, whose names hold the emotion."""
    return _load(_find_jaffe, path, JAFFE_ACCEPTED, reading, "JAFFE", JAFFE_COUNTS, JAFFE_NAME)


def _load(
    find: Callable[[Container, Sequence[str], str], list[LabelledFile]],
    path: str | None,
    accepted: str,
    reading: Mapping[str, object],
    kind: str,
    expected: Counts,
    names: re.Pattern[str] | None = None,
) -> Faces:
    faces = load_layout(find, path, accepted, Reading(**reading), kind)  # type: ignore[arg-type]  # values of the schema
    log.info("%s", compare_counts(faces, kind, expected))
    return faces if names is None else keep_persons_together(faces, names)


def keep_persons_together(faces: Faces, names: re.Pattern[str]) -> Faces:
    """Let a cut keep all images of a person in one part, as it does with twins.

    Args:
        faces: the data.
        names: of image files; its group ``subject`` is the person. An image with another name is a person of its own.

    Returns:
        ``faces`` with ``groups``: people, joined where they share an identical image.
    """
    found = [names.match(str(name).split("/")[-1]) for name in faces.ids]
    people = [match["subject"].upper() if match else f"/{number}" for number, match in enumerate(found)]
    read = {name for name in people if not name.startswith("/")}
    if len(read) < LEAST_PERSONS:
        log.warning("The names of the files show %d persons: a cut may put one into several parts", len(read))
        return faces
    _, person = np.unique(people, return_inverse=True)
    nodes = person.max() + 1 + faces.twins
    links = coo_array((np.ones(len(faces)), (person, nodes)), shape=(nodes.max() + 1,) * 2)
    _, component = connected_components(links, directed=False)
    log.info("Parts that are cut keep each of %d persons in one part", len(read))
    if unread := sum(match is None for match in found):
        log.warning("The names of %d files do not show the person", unread)
    return faces.with_groups(component[person].astype(np.int64))


def compare_counts(faces: Faces, kind: str, expected: Counts) -> str:
    """One line that says whether the counts are those of the real set, and every difference."""
    differences = []
    for part, counts in expected.items():
        usages = [
            number
            for number, name in enumerate(USAGES)
            if part == "all" or USAGE_NAMES[name.lower()] == USAGE_NAMES[part]
        ]
        if "contempt" not in faces.classes:  # AffectNet is used with seven emotions too
            counts = {name: n for name, n in counts.items() if name != "contempt"}
        found = dict.fromkeys(counts, 0)
        for usage in usages:
            for name, n in zip(faces.classes, faces.count(faces.usage == usage), strict=True):
                found[name] = found.get(name, 0) + n
        wrong = [
            f"{name} {n:,} instead of {counts.get(name, 0):,}" for name, n in found.items() if n != counts.get(name, 0)
        ]
        if wrong:
            differences.append(f"{part}: {', '.join(wrong)}")
    if not differences:
        return f"Class counts equal those of {kind}"
    return f"Class counts differ from those of {kind} ({'; '.join(differences)})"


def _find_rafdb(container: Container, names: Sequence[str], inside: str) -> list[LabelledFile]:
    lists = [name for name in names if RAFDB_LIST.fullmatch(name.split("/")[-1])]
    if not lists:
        return _decoded(container, in_folders(container, names, inside), RAFDB_CODES)
    if len(lists) > 1:
        raise UserError(f"{container.path} holds several lists of labels ({', '.join(lists[:3])}): give one of them")
    images: dict[str, str] = {}
    for path in (name for name in names if name.lower().endswith(IMAGE_SUFFIXES)):
        other = images.setdefault(PurePosixPath(path).name.lower(), path)
        if other != path:
            raise UserError(f"{container.path}: {other} and {path} have one name, and the list no folders: remove one")
    where = f"{container.path}: {lists[0]}"
    with container.open(lists[0]) as stream:
        content = stream.read(MAX_LIST + 1)
    if len(content) > MAX_LIST:
        raise UserError(f"{where}: has more than {MAX_LIST:,} bytes: give RAF-DB's own list")
    lines = [line.split() for line in content.decode("utf-8", errors="replace").splitlines() if line.strip()]
    files: dict[str, LabelledFile] = {}
    for number, words in enumerate(lines, start=1):
        part = USAGE_NAMES.get(words[0].split("_")[0].lower())
        if len(words) != 2 or words[1] not in RAFDB_CODES or part is None:
            raise UserError(
                f"{where}, line {number}: must be a file of train or test and a label from 1 to 7, such as "
                "train_00001.jpg 5"
            )
        stem, suffix = words[0].rsplit(".", 1) if "." in words[0] else (words[0], "jpg")
        name = images.get(f"{stem}_aligned.{suffix}".lower(), images.get(words[0].lower()))
        if name is None:
            raise UserError(
                f"{where}, line {number}: {words[0][:80]} does not exist: give the folder with its images too"
            )
        found = LabelledFile(name, RAFDB_CODES[words[1]], part)
        if files.setdefault(name, found) != found:
            raise UserError(f"{where}, line {number}: {words[0][:80]} is listed before with another label: keep one")
    if unlisted := len(images) - len(files):
        log.info("Labels are those of %s; ignored %d images that it does not list", lists[0], unlisted)
    return list(files.values())


def _find_affectnet(container: Container, names: Sequence[str], inside: str) -> list[LabelledFile]:
    files = in_metadata(container, names)
    return _decoded(container, in_folders(container, names, inside) if files is None else files, AFFECTNET_CODES)


def _decoded(container: Container, files: list[LabelledFile], codes: Mapping[str, str]) -> list[LabelledFile]:
    """Files labelled by a data set's own numbers, also as ``class001``, or by names."""
    folder_of: dict[str, str] = {}
    unknown: list[str] = []
    for name in dict.fromkeys(file.label for file in files):
        number = re.fullmatch(r"(?:class)?0*(\d+)", name, re.ASCII)
        if number and number[1] not in codes:
            unknown.append(name)
        other = folder_of.setdefault(codes.get(number[1], name) if number else name, name)
        if other != name:
            raise UserError(f"{container.path}: the folders {other} and {name} are one class: rename or join them")
    if unknown:
        log.warning(
            "%s: the numbers of the data set are %s to %s, and the folders %s are classes of their own: are they "
            "numbered in another way? data.classes=FILE maps or leaves out, also with data=folder",
            container.path,
            min(codes),
            max(codes),
            listed(unknown),
        )
    label_of = {name: label for label, name in folder_of.items()}
    return [file._replace(label=label_of[file.label]) for file in files]


def _find_jaffe(container: Container, names: Sequence[str], inside: str) -> list[LabelledFile]:
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    files = []
    for name in images:
        match = JAFFE_NAME.match(name.split("/")[-1])
        if match:
            files.append(LabelledFile(name, match["code"].upper(), 0))
    if not files:
        raise UserError(f"{container.path / inside}: no image named like KA.AN1.39.tiff: give {JAFFE_ACCEPTED}")
    if len(files) < len(images):
        log.info("Ignored %d images with other names", len(images) - len(files))
    return files
