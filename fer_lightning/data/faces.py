"""The in-memory representation of a data set."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The seven classes in FER-2013's label order (Goodfellow et al. 2013)."""

SYNONYMS = {
    "anger": "angry",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "happiness": "happy",
    "joy": "happy",
    "sadness": "sad",
    "surprised": "surprise",
    "neutrality": "neutral",
}
"""Other names of the emotions in copies of FER-2013."""

USAGES = ("Training", "PublicTest", "PrivateTest", "Test")
"""FER-2013's names of its parts; ``Test`` is used for copies that do not separate PublicTest from PrivateTest."""

IMAGE_SIZE = 48
"""Height and width of a FER-2013 image in pixels."""


@dataclass(frozen=True)
class ImageForm:
    """The form of the images of a set, which a model's input is made from.

    Attributes:
        size: height and width in pixels.
        color: three channels, else gray.
    """

    size: int = IMAGE_SIZE
    color: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: (H, H), or (3, H, H) in the order red, green, blue."""
        return (3, self.size, self.size) if self.color else (self.size, self.size)

    def __str__(self) -> str:
        return f"{self.size}x{self.size} {'colour' if self.color else 'gray'}"


@dataclass(frozen=True)
class Faces:
    """A labelled set of face images.

    Attributes:
        images: uint8, square, shape (N, H, H) gray or (N, 3, H, H) red, green, blue; possibly a memory map. The three
            numbers of a pixel lie together in memory, see ``channels_last``.
        labels: int64, shape (N,), indices into ``classes``.
        usage: uint8, shape (N,), indices into ``USAGES``.
        ids: str, shape (N,), path inside the archive or ``row N`` of the csv.
        twins: int64, shape (N,); two images have the same number if and only if their pixels are identical.
        kind: description of the source ("Kaggle archive (zip)").
        data_hash: hex digest of pixels, labels and usage, and of ``soft`` and ``groups`` where there are any; equal
            for equal content.
        synthetic: True for drawn faces.
        soft: float32, shape (N, C), rows sum to 1: targets to train on instead of ``labels``, or None.
        label_source: origin of the labels: ``fer`` (the data's own) or ``ferplus`` (most FER+ votes).
        classes: names of the C classes.
        parts: names of the parts, in the order of ``USAGES``.
        groups: int64, shape (N,): images that a cut keeps in one part, twins among them; None is ``twins``.
    """

    images: np.ndarray
    labels: np.ndarray
    usage: np.ndarray
    ids: np.ndarray
    twins: np.ndarray
    kind: str
    data_hash: str
    synthetic: bool = False
    soft: np.ndarray | None = None
    label_source: str = "fer"
    classes: tuple[str, ...] = EMOTIONS
    parts: tuple[str, ...] = USAGES
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def form(self) -> ImageForm:
        """Size and colour of the images."""
        return ImageForm(self.images.shape[-1], self.images.ndim == 4)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        usage: np.ndarray,
        ids: np.ndarray,
        kind: str,
        synthetic: bool = False,
        classes: tuple[str, ...] = EMOTIONS,
    ) -> "Faces":
        """Build a set and derive ``twins`` and ``data_hash`` from the arrays and the names of the classes."""
        images = channels_first(np.ascontiguousarray(channels_last(images), dtype=np.uint8))
        labels = np.asarray(labels, dtype=np.int64)
        usage = np.asarray(usage, dtype=np.uint8)
        digest, twins = _read_pixels(images)
        _add_labels(digest, labels, usage, classes)
        return cls(images, labels, usage, np.asarray(ids), twins, kind, digest.hexdigest(), synthetic, classes=classes)

    def with_soft(self, soft: np.ndarray) -> "Faces":
        """The same images with soft targets, float32 (N, C), which ``data_hash`` then depends on."""
        return replace(self, soft=soft, data_hash=_extended(self.data_hash, "soft", soft))

    def with_groups(self, groups: np.ndarray) -> "Faces":
        """The same images with groups, int64 (N,), which ``data_hash`` then depends on: they decide a cut."""
        return replace(self, groups=groups, data_hash=_extended(self.data_hash, "groups", groups))

    def is_intact(self) -> bool:
        """Whether the arrays fit together and ``data_hash`` and ``twins`` are theirs; for a set read from a file."""
        n, ids = len(self.labels), self.ids
        shaped = {each.shape for each in (self.labels, self.usage, ids, self.twins)} == {(n,)} and n > 0
        shaped = shaped and self.images.dtype == np.uint8 and self.images.shape == (n, *self.form.shape)
        shaped = shaped and (self.labels.dtype, self.usage.dtype, self.twins.dtype) == (np.int64, np.uint8, np.int64)
        named = ids.dtype.kind == "U" and len(set(ids.tolist())) == n
        if not shaped or not named or not all(map(is_class_name, self.classes)):
            return False
        if not (self.labels.min() >= 0 and self.labels.max() < len(self.classes) and self.usage.max() < len(USAGES)):
            return False
        digest, twins = _read_pixels(self.images)
        _add_labels(digest, self.labels, self.usage, self.classes)
        return digest.hexdigest() == self.data_hash and np.array_equal(twins, self.twins)

    def count(self, rows: np.ndarray | slice = slice(None)) -> list[int]:
        """Number of images of each class among ``rows`` (indices or a mask)."""
        return count_classes(self.labels[rows], len(self.classes))


def channels_last(images: np.ndarray) -> np.ndarray:
    """Images of a set, (N, 3, H, H), as they are stored: (N, H, H, 3). Gray ones, (N, H, H), are returned as they are.

    A pixel's numbers lie together in image files, in OpenCV's pictures and in a network's input (``channels_last`` of
    torch), so that no image has to be put together from planes.
    """
    return images if images.ndim == 3 else np.moveaxis(images, 1, -1)


def channels_first(stored: np.ndarray) -> np.ndarray:
    """The inverse of ``channels_last``; a view, whose memory stays as it is."""
    return stored if stored.ndim == 3 else np.moveaxis(stored, -1, 1)


def _read_pixels(images: np.ndarray) -> tuple[hashlib.blake2b, np.ndarray]:
    """The digest of images, and their ``twins``, numbered as they first occur."""
    digest = hashlib.blake2b(digest_size=16)
    groups: dict[bytes, int] = {}
    twins = np.empty(len(images), dtype=np.int64)
    for number, pixels in enumerate(_pixels(images)):  # the images may be a file that is larger than the memory
        digest.update(pixels)
        content = hashlib.blake2b(pixels, digest_size=16).digest()
        twins[number] = groups.setdefault(content, len(groups))
    return digest, twins


def _pixels(images: np.ndarray) -> Iterator[bytes]:
    """The bytes of each image in the order of its shape, in which they are hashed, whatever the order in memory is."""
    for image in images:
        yield image.tobytes() if image.ndim == 2 else b"".join(cv2.split(np.moveaxis(image, 0, -1)))


def _add_labels(digest: hashlib.blake2b, labels: np.ndarray, usage: np.ndarray, classes: tuple[str, ...]) -> None:
    """Add all but the pixels to the digest of a set."""
    for array in (labels, usage):
        digest.update(array.tobytes())
    if classes != EMOTIONS:  # the digest of FER-2013 is of pixels, labels and usage alone
        digest.update("\0".join(classes).encode())


def _extended(data_hash: str, name: str, values: np.ndarray) -> str:
    """The digest of a set and of further values of its images."""
    content = f"{data_hash} {name} ".encode() + np.ascontiguousarray(values).tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def emotion_index(name: str, numbers: bool = True) -> int | None:
    """The class that a label or a folder name stands for; None for any other text.

    Args:
        name: of an emotion or a synonym, in any case, with or without a number before it (``3_happy``); or the number
            alone, also as ``3.0``.
        numbers: whether a number alone is accepted: it has a meaning in copies of FER-2013 only.
    """
    word = name.strip().lower()
    if numbers and re.fullmatch(r"0*[0-6](\.0*)?", word):
        return int(float(word))
    word = re.sub(r"^\d+[ _.-]+", "", word)
    emotion = SYNONYMS.get(word, word)
    return EMOTIONS.index(emotion) if emotion in EMOTIONS else None


def count_classes(labels: np.ndarray, classes: int) -> list[int]:
    """Number of images of each of ``classes`` classes."""
    return np.bincount(labels, minlength=classes).tolist()


def is_class_name(name: object) -> bool:
    """Whether a value may name a class: it becomes part of a metric's key, and a word in tables and pictures."""
    return isinstance(name, str) and bool(re.fullmatch(r"[^\s/](?:[^/]{0,58}[^\s/])?", name)) and name.isprintable()


def class_noun(classes: Sequence[str]) -> str:
    """What to call a class in texts: ``emotion`` where all are names of emotions, else ``class``.

    Names are all that is known of a set: images of other things in folders called ``fear`` and ``happy`` are called
    emotions too.
    """
    return "emotion" if set(classes) <= {*EMOTIONS, "contempt"} else "class"


FACE_SETS = ("fer2013", "ferplus8", "rafdb", "affectnet", "ck48", "jaffe", "synthetic")
"""Data sets whose images are faces, whatever their classes were joined to."""


def about_faces(classes: Sequence[str], data: Any) -> bool:
    """Whether a model is about faces: its classes are emotions, or it was trained on one of ``FACE_SETS``.

    Args:
        classes: of the model.
        data: ``data.name`` of its training, see ``trained_on``.
    """
    return class_noun(classes) == "emotion" or data in FACE_SETS


def trained_on(config: Mapping[str, Any]) -> Any:
    """``data.name`` of a configuration that may be damaged; None without one."""
    data = config.get("data")
    return data.get("name") if isinstance(data, Mapping) else None
