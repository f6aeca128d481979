"""Any labelled images: folders of them, or a table that names them; see ``load``."""

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from fer_lightning.data import classes as class_names
from fer_lightning.data.archives import Container, Folder, Tar, Zip, is_tar, log_left_out, open_file, readable_errors
from fer_lightning.data.cache import Allocate, cached, content_key, default_cache_dir
from fer_lightning.data.faces import Faces
from fer_lightning.data.images import IMAGE_SUFFIXES, ImageForm, image_ids, read_images, typical_side
from fer_lightning.data.label_table import MAX_LINE, LabelledFile, has_label_columns, read_label_table
from fer_lightning.data.pixel_csv import USAGE_NAMES
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import expanded

log = logging.getLogger(__name__)

ACCEPTED = (
    "a folder, .zip or .tar.gz of <class>/<image> or train|val|test/<class>/<image>, a folder inside of one "
    "(images.zip/faces), or a CSV of path,label[,split]"
)
TABLES = (".csv", ".tsv", ".txt")
METADATA = "metadata.csv"
RAFDB_LIST = re.compile(r"list_pa\w{0,6}tion_label\.txt", re.IGNORECASE)
"""RAF-DB's list of labels: the copies in use write list_patition_label.txt."""

PARTS = ("train", "val", "test", "test")
"""Names of the parts, in the order of ``USAGES``; the third, FER-2013's PrivateTest, is read as the fourth."""

ANY_COLOR = "any"
"""In place of ``color``: three channels, of gray images too, which True refuses."""

GRAY_SIDE = 48
"""Side of stored gray images, in pixels, where none is given: FER-2013's."""


def load(
    path: str | None,
    classes: str | None = None,
    only: Sequence[str] | None = None,
    color: bool | str | None = None,
    image_size: int | None = None,
    cache_dir: str | None = None,
) -> Faces:
    """Read labelled images of any size and colour, through a cache of parsed arrays.

    Accepted are folders ``<class>/<image>``, ``train|val|test/<class>/<image>`` (also ``training``, ``valid``,
    ``validation``), both with other folders above, and a table of ``path,label[,split]``; each as a folder, a zip or a
    tar. Images in no part are training images, from which a split cuts what is missing.

    Args:
        path: the folder, zip, tar or table; or a folder inside a container, such as ``images.zip/faces``.
        classes: file that renames, merges or leaves out classes; see ``classes.read_mapping``.
        only: classes to keep.
        color: keep three channels; False converts all images to gray; None does so too, but refuses a set of both
            kinds; ``ANY_COLOR`` converts gray images to three channels.
        image_size: side of the stored images in pixels; None is 48 for gray images, and for colour the median side
            of the images, at most 224.
        cache_dir: folder of the parsed arrays; None is the user's cache folder.

    Returns:
        Faces sorted by id, which is the path of the image in the container.

    Raises:
        UserError: something is missing, damaged, or labelled in two ways; names the file, folder or row.
    """
    return load_layout(find_labels, path, ACCEPTED, Reading(classes, only, color, image_size, cache_dir))


@dataclass(frozen=True)
class Reading:
    """How labelled files are read; the arguments of ``load``."""

    classes: str | None = None
    only: Sequence[str] | None = None
    color: bool | str | None = None
    image_size: int | None = None
    cache_dir: str | None = None


Find = Callable[[Container, Sequence[str], str], list[LabelledFile]]
"""Finds the labelled files of a container among names, all below a folder (empty for the top)."""


def load_layout(find: Find, path: str | None, accepted: str, reading: Reading, kind: str = "labelled") -> Faces:
    """Read the files that ``find`` finds; see ``load``.

    Args:
        find: of a layout.
        path: as for ``load``.
        accepted: what the layout is, for errors.
        reading: how the files are read.
        kind: of data, for messages.
    """
    if path is None or not path.strip():
        raise UserError(f"data.path is missing; give data.path=DIR, {accepted}")
    source, inside = _container_and_folder(expanded(path))
    if not source.exists():
        raise UserError(f"data.path={path} does not exist: give {accepted}")
    mapping = class_names.read_mapping(expanded(reading.classes)) if reading.classes else None
    with readable_errors(source):
        container, found = _find(source, inside, find, accepted)
        place = {name: number for number, name in enumerate(container.names())}
        found.sort(key=lambda file: place[file.path])  # a compressed tar is only fast to read forwards
        names = list(dict.fromkeys(file.label for file in found))
        kinds, classes_of = class_names.group_classes(names, mapping, reading.only)
        class_names.log_classes(names, classes_of)
        files = [file for file in found if classes_of[file.label] is not None]
        if len(files) < len(found):
            log.info("Left out %d images of %d", len(found) - len(files), len(found))
        _check_parts(files, classes_of, source / inside)
        _check_names(files, source)
        _check_links(files, container)
        numbers = {name: number for number, name in enumerate(kinds)}
        labels = [numbers[str(classes_of[file.label])] for file in files]
        faces = _read(container, files, labels, kinds, reading, kind)
    counts = ", ".join(f"{n:,} {name}" for name, n in zip(faces.classes, faces.count(), strict=True))
    log.info("Found %s images: %s", f"{len(faces):,}", counts)
    return faces


def _read(
    container: Container,
    files: Sequence[LabelledFile],
    labels: Sequence[int],
    classes: tuple[str, ...],
    reading: Reading,
    kind: str,
) -> Faces:
    paths, usage = [file.path for file in files], np.array([file.usage for file in files])
    usage[usage == PARTS.index("test")] = len(PARTS) - 1  # PrivateTest and Test, of one name here
    side = reading.image_size or (typical_side(container, paths) if reading.color else GRAY_SIDE)
    form = ImageForm(side, bool(reading.color))
    directory = expanded(reading.cache_dir) if reading.cache_dir else default_cache_dir()
    plan = "\n".join(f"{path}\t{label}\t{part}" for path, label, part in zip(paths, labels, usage, strict=True))
    one_kind = reading.color is None
    gray_too = reading.color == ANY_COLOR
    kinds = ", all alike" * one_kind + ", gray too" * gray_too
    described = f"{form}{kinds}\n{classes}\n{plan}"
    key = content_key(container, paths, described)

    def build(allocate: Allocate) -> Faces:
        ids = image_ids(container, paths)
        order = np.argsort(ids, kind="stable")
        place = np.argsort(order, kind="stable")
        images = read_images(container, paths, place, form, allocate((len(paths), *form.shape)), one_kind, gray_too)
        if not container.is_current() or content_key(container, paths, described) != key:
            raise UserError(f"{container.path} was changed while it was read: start again when it is complete")
        return Faces.from_arrays(
            images,
            np.array(labels)[order],
            usage[order],
            ids[order],
            kind=f"{kind} {container.form}",
            classes=classes,
        )

    return replace(cached(key, build, directory), parts=PARTS)


def _container_and_folder(path: Path) -> tuple[Path, str]:
    """Split ``images.zip/faces`` into archive and folder; any other path is returned as is, with an empty folder."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _find(source: Path, inside: str, find: Find, accepted: str) -> tuple[Container, list[LabelledFile]]:
    if source.is_dir():
        container: Container = Folder(source)
    else:
        with open_file(source) as stream:
            start = stream.read(4)
        if start == b"PK\x03\x04":
            container = Zip(source)
        elif is_tar(source):
            container = Tar(source)
        elif source.suffix.lower() in TABLES:
            if inside:
                raise UserError(f"data.path={source / inside}: a table holds no folder: give data.path={source}")
            if RAFDB_LIST.fullmatch(source.name):
                raise UserError(f"data.path={source} is RAF-DB's list of labels: give its folder, with data=rafdb")
            container = Folder(source.parent)
            with open_file(source) as stream:
                return container, read_label_table(stream, str(source), container.names(), "")
        else:
            raise UserError(f"data.path={source} is not a folder, archive or table: give {accepted}")
    log_left_out(container)
    return container, find(
        container, [name for name in container.names() if name.startswith(inside and f"{inside}/")], inside
    )


def find_labels(container: Container, names: Sequence[str], inside: str) -> list[LabelledFile]:
    """The files of a table of labels, or those in folders of classes."""
    if (described := in_metadata(container, names)) is not None:
        return described
    table = _table(container, names)
    if table is None:
        if others := [name for name in names if name.lower().endswith((".csv", ".tsv"))]:
            log.warning("Ignored %s: its first line does not name the columns path and label, in UTF-8", _some(others))
        files = in_folders(container, names, inside)
        lists = [name for name in names if RAFDB_LIST.fullmatch(PurePosixPath(name).name)]
        if lists and {file.label.lower() for file in files} <= {"aligned", "original"}:
            raise UserError(f"{container.path}: {lists[0]} is RAF-DB's list of labels: read it with data=rafdb")
        return files
    folder = str(PurePosixPath(table).parent).removeprefix(".")
    with container.open(table) as stream:
        files = read_label_table(stream, f"{container.path}: {table}", names, folder)
    if unlisted := sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names) - len(files):
        log.info("Labels are those of %s; ignored %d images that it does not list", table, unlisted)
    return files


def in_metadata(container: Container, names: Sequence[str]) -> list[LabelledFile] | None:
    """The files that ``metadata.csv`` of several folders name, as ``train/metadata.csv`` of ``file_name,label``.

    That is how the Hugging Face Hub keeps images. The folder's name is the part, where it is one. None for fewer
    tables than two.
    """
    tables = [
        name for name in names if PurePosixPath(name).name.lower() == METADATA and _names_columns(container, name)
    ]
    if len(tables) < 2:
        return None
    files: list[LabelledFile] = []
    for table in tables:
        folder = PurePosixPath(table).parent
        with container.open(table) as stream:
            found = read_label_table(stream, f"{container.path}: {table}", names, str(folder).removeprefix("."))
        part = USAGE_NAMES.get(folder.name.lower())
        files += found if part is None else [file._replace(usage=part) for file in found]
    unlisted = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names) - len(files)
    left_out = f"; ignored {unlisted} images that they do not list" if unlisted else ""
    log.info("Labels are those of %s%s", _some(tables), left_out)
    return files


def _table(container: Container, names: Sequence[str]) -> str | None:
    """The only file that names the columns of a table of labels; None where there is none."""
    tables = [name for name in names if name.lower().endswith(TABLES) and _names_columns(container, name)]
    if len(tables) > 1:
        raise UserError(f"{container.path} holds several tables of labels ({', '.join(tables[:3])}): give one of them")
    return tables[0] if tables else None


def _names_columns(container: Container, name: str) -> bool:
    with container.open(name) as stream:
        first = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace").readline(MAX_LINE)
    return has_label_columns(first)


def in_folders(container: Container, names: Sequence[str], inside: str) -> list[LabelledFile]:
    """The images in folders of classes, with their parts."""
    files: list[LabelledFile] = []
    tops: dict[tuple[str, bool], str] = {}
    loose = 0
    for name in names:
        if not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        parents = PurePosixPath(name.removeprefix(inside).lstrip("/")).parts[:-1]
        if not parents:
            loose += 1
            continue
        *above, label = parents
        part = USAGE_NAMES.get(above[-1].lower()) if above else None
        tops.setdefault(("/".join(above if part is None else above[:-1]), part is not None), name)
        files.append(LabelledFile(name, label, part or 0))
    where = container.path / inside
    if not files:
        hint = f"{loose} images lie in no folder; " if loose else ""
        if parquet := [name for name in names if name.lower().endswith(".parquet")]:
            hint += f"parquet files such as {printable(parquet[0])} are not read, write their images to files; "
        raise UserError(f"{where}: no image in a folder of a class: {hint}give {ACCEPTED}")
    labels = {file.label for file in files}
    if len(labels) > 1 and {name.lower() for name in labels} <= USAGE_NAMES.keys():
        raise UserError(
            f"{where}: the images are in folders of parts ({', '.join(sorted(labels))}) and in none of a class: give "
            f"{ACCEPTED}"
        )
    if len({has_parts for _, has_parts in tops}) > 1:
        first, second = (next(name for (_, parts), name in tops.items() if parts is kind) for kind in (True, False))
        raise UserError(
            f"{where} holds both train|val|test/<class>/ (such as {first}) and <class>/ (such as {second}): give one"
        )
    if len(tops) > 1:
        places = sorted(top or "." for top, _ in tops)
        raise UserError(
            f"{where} holds several trees of classes (in {', '.join(places[:4])}): give one of them, such as "
            f"data.path={where / places[-1]}"
        )
    if loose:
        log.info("Ignored %d images that lie in no folder of a class", loose)
    _log_ignored(names)
    return files


def _log_ignored(names: Sequence[str]) -> None:
    """Log the files in folders that are not read as images, such as ``.gif``."""
    others = [name for name in names if "/" in name and not name.lower().endswith(IMAGE_SUFFIXES)]
    if others:
        endings = sorted({PurePosixPath(name).suffix.lower() or "no ending" for name in others})
        log.info("Ignored %d files that are not images (%s)", len(others), ", ".join(endings[:5]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:5]))


def _check_parts(files: Sequence[LabelledFile], classes_of: Mapping[str, str | None], where: Path) -> None:
    """Refuse a class of which only the validation or test images are there, besides those of other classes."""
    trained = {classes_of[file.label] for file in files if file.usage == 0}
    absent = sorted({str(classes_of[file.label]) for file in files} - {str(name) for name in trained})
    if trained and absent:
        raise UserError(
            f"{where}: no training image of {', '.join(absent[:5])}, which other parts have: add some, or leave the "
            "class out with data.classes"
        )


def _check_links(files: Sequence[LabelledFile], container: Container) -> None:
    """Refuse a link in one part to an image of another one, which would be trained on and tested with."""
    if not isinstance(container, Folder):
        return
    known: dict[tuple[int, int], LabelledFile] = {}
    for file in files:
        at = (container.path / file.path).stat()
        other = known.setdefault((at.st_dev, at.st_ino), file)
        if other.usage != file.usage:
            raise UserError(
                f"{container.path}: {printable(other.path)} and {printable(file.path)} are one file in two parts: "
                "remove one of them"
            )


def _check_names(files: Sequence[LabelledFile], source: Path) -> None:
    """Refuse names that are not UTF-8, which no table of predictions could hold."""
    for file in files:
        try:
            file.path.encode()
        except UnicodeEncodeError:
            raise UserError(f"{source}: the file name {printable(file.path)} is not UTF-8: rename the file") from None
