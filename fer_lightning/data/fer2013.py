"""FER-2013 (Goodfellow et al. 2013), read from any of the formats it is distributed in."""

import gzip
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from fer_lightning.data.archives import (
    Container,
    Folder,
    Limited,
    Tar,
    Zip,
    is_tar,
    log_left_out,
    open_file,
    readable_errors,
)
from fer_lightning.data.cache import Allocate, cached, content_key, default_cache_dir
from fer_lightning.data.faces import EMOTIONS, USAGES, Faces
from fer_lightning.data.image_tree import images_of_emotions, images_of_tree, read_image_tree
from fer_lightning.data.members import MAX_FILE
from fer_lightning.data.pixel_csv import has_columns, read_pixel_csv
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import expanded

log = logging.getLogger(__name__)

OFFICIAL_COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "PublicTest": (467, 56, 496, 895, 653, 415, 607),
    "PrivateTest": (491, 55, 528, 879, 594, 416, 626),
    "Test": (958, 111, 1024, 1774, 1247, 831, 1233),
}
"""Images of each emotion, in ``EMOTIONS`` order, in the competition's data; ``Test`` is PublicTest and PrivateTest."""

KAGGLE_DATASET = "msambare/fer2013"
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv", "train.csv")
ACCEPTED = (
    "the Kaggle archive (zip or folder), or fer2013.csv or icml_face_data.csv (plain, .gz, or in a .zip or .tar.gz)"
)


def load(path: str | None, cache_dir: str | None = None) -> Faces:
    """Read FER-2013 in any of its formats, through a cache of parsed arrays.

    Accepted are the Kaggle archive ``msambare/fer2013`` as zip or folder, the competition's ``fer2013.csv`` and
    ``icml_face_data.csv`` (plain, gzip, or inside a zip or tar), its ``train.csv`` without Usage, and copies of the
    folders whose file names do not contain the usage, also with ``val/`` or without ``test/``, or whose emotions have
    other names (``anger``) or FER-2013's numbers. What is missing is cut from Training by the split. The
    detected format, and whether the class counts equal the official table, are logged.

    Args:
        path: the file or folder; None downloads the Kaggle archive through kagglehub.
        cache_dir: folder of the parsed arrays; None is the user's cache folder.

    Raises:
        UserError: the data are missing, damaged or incomplete; one line that names the file and, in a csv, the row.
    """
    source = _download() if path is None else expanded(path)
    if path is not None and (not path.strip() or not source.exists()):
        raise UserError(f"data.path={path} does not exist: give {ACCEPTED}")
    directory = expanded(cache_dir) if cache_dir else default_cache_dir()
    key = _key(source)

    def build(allocate: Allocate) -> Faces:
        faces = read(source)
        if _key(source) != key:
            raise UserError(f"{source} was changed while it was read: start again when it is complete")
        return faces

    faces = cached(key, build, directory)
    counts = usage_counts(faces)
    log.info("Found %s: %s", faces.kind, ", ".join(f"{sum(n):,} {usage}" for usage, n in counts.items()))
    log.info("%s", compare_with_official(counts))
    return faces


def read(source: Path) -> Faces:
    """Parse an existing file or folder without the cache; otherwise as ``load``."""
    with readable_errors(source):
        faces = _read_any(source)
    _check_classes(faces, source)
    return faces


def _key(source: Path) -> str:
    with readable_errors(source):
        if not source.is_dir():
            return content_key(source)
        folder = Folder(source)
        return content_key(folder, _find(folder).names)


def usage_counts(faces: Faces) -> dict[str, list[int]]:
    """Images per emotion for each usage that occurs, in the order of ``USAGES``."""
    counts = {name: faces.count(faces.usage == number) for number, name in enumerate(USAGES)}
    return {name: count for name, count in counts.items() if any(count)}


def compare_with_official(counts: Mapping[str, Sequence[int]]) -> str:
    """One line that states whether the counts equal the official table and lists every difference."""
    expected = ("Training", "Test") if "Test" in counts else USAGES[:3]
    differences = []
    for usage in expected:
        found = counts.get(usage)
        if found is None:
            differences.append(f"{usage}: no images")
            continue
        wrong = [
            f"{emotion} {n} instead of {official}"
            for emotion, n, official in zip(EMOTIONS, found, OFFICIAL_COUNTS[usage], strict=True)
            if n != official
        ]
        if wrong:
            differences.append(f"{usage}: {', '.join(wrong)}")
    if not differences:
        return "Class counts equal the official FER-2013 table"
    return f"Class counts differ from the official FER-2013 table ({'; '.join(differences)})"


def _read_any(source: Path) -> Faces:
    if source.is_dir():
        return _read_container(Folder(source))
    with open_file(source) as stream:
        start = stream.read(4)
    if not start:
        raise UserError(f"{source} is empty: give {ACCEPTED}")
    if start[:2] == b"PK" or source.suffix.lower() == ".zip":
        return _read_container(Zip(source))
    if source.name.lower().endswith((".tar", ".tar.gz", ".tgz")) or is_tar(source):
        return _read_container(Tar(source))
    if start[:2] == b"\x1f\x8b" or source.suffix.lower() == ".gz":
        with io.BufferedReader(Limited(cast(IO[bytes], gzip.open(source)), source, MAX_FILE)) as unpacked:
            return read_pixel_csv(unpacked, str(source), packing="gzip")
    with open_file(source) as stream:
        return read_pixel_csv(stream, str(source))


class _Content(NamedTuple):
    """What a container's images are read from: image files, or one csv."""

    names: list[str]
    is_csv: bool


def _find(container: Container) -> _Content:
    names = container.names()
    if images := images_of_tree(names):
        return _Content(images, False)
    tables = [name for name in names if name.lower().endswith(".csv")]
    for wanted in CSV_NAMES:
        known = [name for name in tables if name.lower().split("/")[-1] == wanted]
        if len(known) > 1:
            raise UserError(f"{container.path} holds several files {wanted} ({', '.join(known[:3])}): give one of them")
        if known:
            return _Content(known, True)
    if len(tables) == 1:
        return _Content(tables, True)
    if images := images_of_emotions(names):
        return _Content(images, False)
    packed = [name for name in names if name.lower().endswith((".zip", ".tar.gz", ".tgz", ".csv.gz"))]
    if packed:
        hint = f"it holds {packed[0]}; give that file"
    else:
        hint = f"expected train/<emotion>/ and test/<emotion>/, or one of {', '.join(CSV_NAMES)}"
    raise UserError(f"{container.path}: no images found: {hint}")


def _read_container(container: Container) -> Faces:
    log_left_out(container)
    names, is_csv = _find(container)
    _warn_of_others(container, names[0] if is_csv else "")
    if not is_csv:
        return read_image_tree(container, names)
    with container.open(names[0]) as stream:
        return read_pixel_csv(stream, f"{container.path}: {names[0]}", packing=container.form)


def _warn_of_others(container: Container, chosen: str) -> None:
    """Name the tables of labelled images that are not read: all but the chosen one, or all beside folders of images."""
    others = []
    for name in container.names():
        if name != chosen and name.lower().endswith(".csv"):
            with container.open(name) as stream:
                if has_columns(stream):
                    others.append(name)
    if others:
        log.warning(
            "Read %s; ignored %s, which have labelled images too",
            chosen or "the folders of images",
            ", ".join(others[:5]),
        )


def _check_classes(faces: Faces, source: Path) -> None:
    for usage, counts in usage_counts(faces).items():
        empty = [emotion for emotion, count in zip(EMOTIONS, counts, strict=True) if count == 0]
        if empty:
            raise UserError(f"{source}: no image of {', '.join(empty)} in {usage}: every usage needs every emotion")


def _download() -> Path:
    import kagglehub  # imported here because it takes half a second

    log.info("No data.path given: fetching %s through kagglehub", KAGGLE_DATASET)
    try:
        return Path(kagglehub.dataset_download(KAGGLE_DATASET))
    except Exception as error:  # kagglehub lets any network, credential or disk error through
        reason = one_line(error)[:200]
        raise UserError(
            f"FER-2013 could not be downloaded ({reason}): fetch the zip from"
            f" https://www.kaggle.com/datasets/{KAGGLE_DATASET}, put it anywhere,"
            " and give data.path=PATH_OF_THE_ZIP"
        ) from error
