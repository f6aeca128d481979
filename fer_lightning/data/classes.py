"""Classes of a labelled set: emotions under other names, and classes that are renamed, merged or left out."""

import logging
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fer_lightning.config.messages import did_you_mean
from fer_lightning.data.faces import EMOTIONS, SYNONYMS, Faces, is_class_name
from fer_lightning.presentation.words import listed, natural_key
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import check_characters, read_bytes

log = logging.getLogger(__name__)

KNOWN = (*EMOTIONS, "contempt")
"""Emotions in the order that a set of them gets."""

CODES = {
    "an": "angry",
    "di": "disgust",
    "fe": "fear",
    "ha": "happy",
    "ne": "neutral",
    "sa": "sad",
    "su": "surprise",
    "co": "contempt",
}
"""Codes of JAFFE and KDEF (AN, DI, ...), read as emotions where all classes of a set are codes or names of emotions."""

NOTHING = ("", "null", "~")
"""Values in a mapping file that leave a class out."""

MOST = 1000
"""Most classes of a set; more are usually folders of something else."""

MAX_BYTES = 200_000
"""Size of a mapping file."""


def known_emotion(name: str) -> str | None:
    """The emotion that a name stands for, in any case and with or without a number before it; None for other words."""
    word = re.sub(r"^\d+[ _.-]+", "", name.strip().lower())
    word = SYNONYMS.get(word, CODES.get(word, word))
    return word if word in KNOWN else None


def as_emotions(names: Iterable[str]) -> dict[str, str]:
    """Name -> emotion, where every name stands for an emotion of its own; else nothing is renamed."""
    emotions = {name: known_emotion(name) for name in names}
    found = [emotion for emotion in emotions.values() if emotion is not None]
    if len(found) < len(emotions) or len(set(found)) < len(found):
        return {}
    return {name: emotion for name, emotion in emotions.items() if emotion is not None}


class _TwiceError(ValueError):
    """A name is there twice."""


class _EachNameOnce(yaml.BaseLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if (most := names.most_common(1)) and most[0][1] > 1:
            raise _TwiceError(most[0][0])
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, str | None]:
    """Read a YAML or JSON file with a line for each class that is renamed, merged with another or left out.

    Returns:
        Name in lower case -> name of the class, or None for a class to leave out.

    Raises:
        UserError: the file cannot be read, is not a mapping, or names a class by something else than a word.
    """
    try:
        # BaseLoader keeps every value a string: a class may be called 0 or no.
        text = read_bytes(path, MAX_BYTES).decode("utf-8")
        content = yaml.load(text, Loader=_EachNameOnce)
        check_characters(text, content)
    except _TwiceError as error:
        raise UserError(f"data.classes={path}: {error.args[0]!r} is there twice; keep one line") from None
    except OSError as error:
        raise UserError(f"data.classes={path}: cannot be read ({error.strerror}); give a YAML or JSON file") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # also not UTF-8, or an anchor within itself
        content = None
    if not isinstance(content, dict) or not content:
        raise UserError(f'data.classes={path}: not a mapping; write a line for each class, such as "rage: angry"')
    mapping: dict[str, str | None] = {}
    for name, wanted in content.items():
        is_word = isinstance(name, str) and isinstance(wanted, str)
        if not is_word or not (wanted.strip().lower() in NOTHING or is_class_name(wanted.strip())):
            raise UserError(
                f"data.classes={path}: {reprlib.repr(name)}: {reprlib.repr(wanted)} is not a valid class name; "
                "give a word, or null to leave the class out"
            )
        if name.lower() in mapping:
            raise UserError(f"data.classes={path}: {name} differs from another name only in case; keep one line")
        mapping[name.lower()] = None if wanted.strip().lower() in NOTHING else wanted.strip()
    return mapping


def group_classes(
    names: Sequence[str], mapping: Mapping[str, str | None] | None = None, only: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, str | None]]:
    """Decide which class each name of a labelled set belongs to.

    Names of emotions are read as FER-2013's where all names are emotions; after that ``mapping`` renames, merges and
    leaves out, by the names as found or as emotions; at last ``only`` keeps some of the classes.

    Args:
        names: as found, each once.
        mapping: from ``read_mapping``.
        only: names of the classes to keep, in the order that they get.

    Returns:
        The classes in order: emotions in FER-2013's, others by name with 2 before 10; and the class of each name, None
        for one that is left out.

    Raises:
        UserError: names that differ in case alone, a name that cannot be one, an unknown one, or no class left.
    """
    mapping = mapping or {}
    _check_names(names)
    emotions = as_emotions(name for name in names if name.lower() not in mapping)
    classes_of: dict[str, str | None] = {}
    for name in names:
        emotion = emotions.get(name, known_emotion(name))
        key = next((key for key in (name.lower(), emotion) if key is not None and key in mapping), None)
        classes_of[name] = emotions.get(name, name) if key is None else mapping[key]
    unknown = set(mapping) - {name.lower() for name in names} - {known_emotion(name) for name in names}
    if unknown:
        free = [name for name in names if name.lower() not in mapping]
        hinted = ", ".join(f"{name}{did_you_mean(name, free)}" for name in sorted(unknown))
        log.warning("data.classes names classes that the data do not have: %s", hinted)
    left = {name for name in classes_of.values() if name is not None}
    final = as_emotions(left)
    classes_of = {name: None if given is None else final.get(given, given) for name, given in classes_of.items()}
    _check_names(list(dict.fromkeys(name for name in classes_of.values() if name is not None)))
    classes = sort_classes({name for name in classes_of.values() if name is not None})
    _log_synonyms(classes)
    if only is not None:
        classes = _only(classes, only)
        classes_of = {name: given if given in classes else None for name, given in classes_of.items()}
    if not 1 <= len(classes) <= MOST:
        raise UserError(f"{len(classes):,} classes are left; accepted: 1 to {MOST:,}; see data.classes and data.only")
    return classes, classes_of


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Emotions in the order of ``KNOWN`` where all are; else by name, 2 before 10."""
    names = set(names)
    if names <= set(KNOWN):
        return tuple(name for name in KNOWN if name in names)
    return tuple(sorted(names, key=natural_key))


def select_classes(faces: Faces, mapping: Mapping[str, str | None] | None, only: Sequence[str] | None) -> Faces:
    """Rename, merge and leave out classes of a set that was read; see ``group_classes``.

    Raises:
        UserError: as ``group_classes``; or soft labels, which the votes of a left-out class would be missing from.
    """
    if not mapping and only is None:
        return faces
    if faces.soft is not None:
        raise UserError(
            "labels.targets=soft: the votes are those for seven emotions; leave data.classes and data.only out"
        )
    classes, classes_of = group_classes(faces.classes, mapping, only)
    log_classes(faces.classes, classes_of)
    numbers = [-1 if (given := classes_of[name]) is None else classes.index(given) for name in faces.classes]
    labels = np.array(numbers)[faces.labels]
    kept = np.flatnonzero(labels >= 0)
    new = Faces.from_arrays(
        faces.images[kept], labels[kept], faces.usage[kept], faces.ids[kept], faces.kind, faces.synthetic, classes
    )
    return replace(new, label_source=faces.label_source)


def match_classes(faces: Faces, classes: tuple[str, ...]) -> Faces:
    """The images of a set whose class a model knows, labelled by the model's classes; without soft targets.

    Raises:
        UserError: the model knows none of the classes.
    """
    if faces.classes == classes:
        return faces
    shared = [name for name in faces.classes if name in classes]
    if not shared:
        raise UserError(
            f"the data have the classes {', '.join(faces.classes)}, and the model knows {', '.join(classes)}: none is "
            "shared; data.classes=FILE maps names to the model's"
        )
    counts = dict(zip(faces.classes, faces.count(), strict=True))
    left_out = [f"{name} ({counts[name]:,} images)" for name in faces.classes if name not in classes]
    log.info("Classes matched: %s", ", ".join(shared))
    if left_out:
        log.info("Left out, the model does not know them: %s", ", ".join(left_out))
    if missing := [name for name in classes if name not in shared]:
        log.info("Known to the model and not in the data: %s", ", ".join(missing))
    numbers = [classes.index(name) if name in classes else -1 for name in faces.classes]
    labels = np.array(numbers)[faces.labels]
    kept = np.flatnonzero(labels >= 0)
    return replace(
        faces,
        images=faces.images[kept],
        labels=labels[kept],
        usage=faces.usage[kept],
        ids=faces.ids[kept],
        twins=faces.twins[kept],
        soft=None,  # of the set's own classes
        groups=None if faces.groups is None else faces.groups[kept],
        classes=classes,
    )


def log_classes(names: Sequence[str], classes_of: Mapping[str, str | None]) -> None:
    """Log what was renamed, merged or left out."""
    renamed = [f"{name} is {given}" for name in names if (given := classes_of[name]) is not None and given != name]
    if renamed:
        log.info("Classes: %s", ", ".join(renamed))
    if left_out := [name for name in names if classes_of[name] is None]:
        log.info("Classes left out: %s", ", ".join(left_out))


def _log_synonyms(classes: Sequence[str]) -> None:
    """Warn of classes that are one emotion under two names: it is not known whether they are meant to be one."""
    names_of: dict[str, list[str]] = {}
    for name in classes:
        if (emotion := known_emotion(name)) is not None:
            names_of.setdefault(emotion, []).append(name)
    for emotion, names in names_of.items():
        if len(names) > 1:
            log.warning(
                "%s may be one emotion, and are read as %d classes: data.classes=FILE joins them, with a line such as "
                '"%s: %s"',
                listed(names),
                len(names),
                next(name for name in names if name != emotion),
                emotion,
            )


def _check_names(names: Sequence[str]) -> None:
    wrong = [name for name in names if not is_class_name(name)]
    if wrong:
        raise UserError(
            f"{reprlib.repr(wrong[0])} cannot name a class: give 1 to 60 printable characters, without / and "
            "without spaces at the ends; rename it"
        )
    spellings = ((str.lower, "case"), (_composed, "how accents are encoded"), (_number, "how a number is written"))
    for seen_as, how in spellings:
        folded = Counter(map(seen_as, names))
        twice = [name for name in names if folded[seen_as(name)] > 1]
        if twice:
            raise UserError(f"the classes {' and '.join(twice[:2])} differ in {how} alone: rename one of them")


def _number(name: str) -> str:
    """``1`` of ``1.0`` and ``01``, as two tables may have it."""
    return str(float(name)) if re.fullmatch(r"[+-]?\d+(\.\d*)?", name, re.ASCII) else name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()  # macOS takes letters and their accents apart


def _own_name(name: str, classes: Sequence[str]) -> str:
    emotion = known_emotion(name)
    return emotion if name not in classes and emotion is not None and emotion in classes else name


def _only(classes: Sequence[str], only: Sequence[str]) -> tuple[str, ...]:
    wanted = [_own_name(str(name), classes) for name in only]
    for name in wanted:
        if name not in classes:
            raise UserError(
                f"data.only: the data have no class {name}{did_you_mean(name, list(classes))}; they have "
                f"{', '.join(classes)}"
            )
    if len(set(wanted)) < len(wanted):
        raise UserError(f"data.only={','.join(wanted)}: names a class twice")
    return tuple(wanted)
