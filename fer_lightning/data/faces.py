"""The in-memory representation of a data set."""

import hashlib
import re
from dataclasses import dataclass

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
class Faces:
    """A labelled set of face images.

    Attributes:
        images: uint8, shape (N, 48, 48), gray; possibly a read-only memory map.
        labels: int64, shape (N,), indices into ``EMOTIONS``.
        usage: uint8, shape (N,), indices into ``USAGES``.
        ids: str, shape (N,), path inside the archive or ``row N`` of the csv.
        twins: int64, shape (N,); two images have the same number if and only if their pixels are identical.
        kind: description of the source ("Kaggle archive (zip)").
        data_hash: hex digest of pixels, labels and usage, equal for equal content.
        synthetic: True for drawn faces.
        soft: float32, shape (N, 7), rows sum to 1: targets to train on instead of ``labels``, or None.
        label_source: origin of the labels: ``fer`` (the data's own) or ``ferplus`` (most FER+ votes).
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

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        usage: np.ndarray,
        ids: np.ndarray,
        kind: str,
        synthetic: bool = False,
    ) -> "Faces":
        """Build a set and derive ``twins`` and ``data_hash`` from the arrays."""
        images = np.ascontiguousarray(images, dtype=np.uint8)
        labels = np.asarray(labels, dtype=np.int64)
        usage = np.asarray(usage, dtype=np.uint8)
        groups: dict[bytes, int] = {}
        twins = np.array([groups.setdefault(image.tobytes(), len(groups)) for image in images], dtype=np.int64)
        digest = hashlib.blake2b(digest_size=16)
        for array in (images, labels, usage):
            digest.update(array.tobytes())
        return cls(images, labels, usage, np.asarray(ids), twins, kind, digest.hexdigest(), synthetic)


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


def count_classes(labels: np.ndarray) -> list[int]:
    """Number of images of each emotion, in ``EMOTIONS`` order."""
    return np.bincount(labels, minlength=len(EMOTIONS)).tolist()
