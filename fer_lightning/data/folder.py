"""Any labelled images: folders of them, or a table that names them; see ``load``."""

import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fer_lightning.data import classes as class_names
from fer_lightning.data.archives import Container, Folder, Tar, Zip, is_tar, open_file, readable_errors
from fer_lightning.data.cache import Allocate, cached, content_key, default_cache_dir
from fer_lightning.data.faces import Faces
from fer_lightning.data.images import IMAGE_SUFFIXES, ImageForm, image_ids, read_images, typical_side
from fer_lightning.data.label_table import MAX_LINE, LabelledFile, has_label_columns, read_label_table
from fer_lightning.data.pixel_csv import USAGE_NAMES
from fer_lightning.runtime.errors import UserError

log = logging.getLogger(__name__)

ACCEPTED = (
    "a folder, .zip or .tar.gz of <class>/<image> or train|val|test/<class>/<image>, a folder inside of one "
    "(images.zip/faces), or a CSV of path,label[,split]"
)
TABLES = (".csv", ".tsv", ".txt")
GRAY_SIDE = 48
"""Side of stored gray images, in pixels, where none is given: FER-2013's."""


class _Found(NamedTuple):
    container: Container
    files: list[LabelledFile]


def load(
    path: str | None,
    classes: str | None = None,
    only: Sequence[str] | None = None,
    color: bool = False,
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
        color: keep three channels.
        image_size: side of the stored images in pixels; None is 48 for gray images, and for colour the median side
            of the images, at most 224.
        cache_dir: folder of the parsed arrays; None is the user's cache folder.

    Returns:
        Faces sorted by id, which is the path of the image in the container.

    Raises:
        UserError: something is missing, damaged, or labelled in two ways; names the file, folder or row.
    """
    if path is None or not path.strip():
        raise UserError(f"data.path is missing; give data.path=DIR, {ACCEPTED}")
    source, inside = _container_and_folder(Path(path).expanduser())
    if not source.exists():
        raise UserError(f"data.path={path} does not exist: give {ACCEPTED}")
    mapping = class_names.read_mapping(Path(classes).expanduser()) if classes else None
    with readable_errors(source):
        found = _find(source, inside)
        names = list(dict.fromkeys(file.label for file in found.files))
        kinds, classes_of = class_names.group_classes(names, mapping, only)
        class_names.log_classes(names, classes_of)
        files = [file for file in found.files if classes_of[file.label] is not None]
        if len(files) < len(found.files):
            log.info("Left out %d images of %d", len(found.files) - len(files), len(found.files))
        side = image_size or (typical_side(found.container, [file.path for file in files]) if color else GRAY_SIDE)
        form = ImageForm(side, color)
        numbers = [kinds.index(str(classes_of[file.label])) for file in files]
        paths = [file.path for file in files]
        directory = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        plan = "\n".join(f"{file.path}\t{number}\t{file.usage}" for file, number in zip(files, numbers, strict=True))
        key = content_key(found.container, paths, f"{form}\n{kinds}\n{plan}")

        def build(allocate: Allocate) -> Faces:
            ids = image_ids(found.container, paths)
            order = np.argsort(ids, kind="stable")
            place = np.argsort(order, kind="stable")
            images = read_images(found.container, paths, place, form, allocate((len(paths), *form.shape)))
            return Faces.from_arrays(
                images,
                np.array(numbers)[order],
                np.array([file.usage for file in files])[order],
                ids[order],
                kind=f"labelled {found.container.form}",
                classes=kinds,
            )

        faces = cached(key, build, directory)
    counts = ", ".join(f"{n:,} {name}" for name, n in zip(faces.classes, faces.count(), strict=True))
    log.info("Found %s images: %s", f"{len(faces):,}", counts)
    return faces


def _container_and_folder(path: Path) -> tuple[Path, str]:
    """Split ``images.zip/faces`` into archive and folder; any other path is returned as is, with an empty folder."""
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _find(source: Path, inside: str) -> _Found:
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
            folder = Folder(source.parent)
            with open_file(source) as stream:
                return _Found(folder, read_label_table(stream, str(source), folder.names(), ""))
        else:
            raise UserError(f"data.path={source} is no folder, archive or table: give {ACCEPTED}")
    names = [name for name in container.names() if name.startswith(inside and f"{inside}/")]
    table = _table(container, names)
    if table is not None:
        folder_of = str(PurePosixPath(table).parent).removeprefix(".")
        with container.open(table) as stream:
            return _Found(container, read_label_table(stream, f"{container.path}: {table}", names, folder_of))
    return _Found(container, _in_folders(container, names, inside))


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


def _in_folders(container: Container, names: Sequence[str], inside: str) -> list[LabelledFile]:
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
        raise UserError(f"{where}: no image in a folder of a class: {hint}give {ACCEPTED}")
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
    _check_parts(files, where)
    return files


def _check_parts(files: Sequence[LabelledFile], where: Path) -> None:
    """Refuse a class of which only the validation or test images are there, besides those of other classes."""
    trained = Counter(file.label for file in files if file.usage == 0)
    absent = sorted({file.label for file in files if not trained[file.label]})
    if trained and absent:
        raise UserError(
            f"{where}: no training image of {', '.join(absent[:5])}, which other parts have: add some, or leave the "
            "class out with data.classes"
        )
