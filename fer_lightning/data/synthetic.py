"""Drawn faces: a stand-in for FER-2013 that needs no download, with its class ratios and confusions."""

from typing import NamedTuple

import cv2
import numpy as np

from fer_lightning.data.faces import EMOTIONS, IMAGE_SIZE, USAGES, Faces
from fer_lightning.data.splits import apportion
from fer_lightning.runtime.errors import UserError

CLASS_WEIGHTS = (4953, 547, 5121, 8989, 6077, 4002, 6198)
"""FER-2013's images per emotion, whose ratios the drawn set has."""

TEST_SHARE = 0.1
LEAST_PER_CLASS = 8
"""Images of each emotion that every usage has at least; a tenth of all images has too few of disgust."""


class Expression(NamedTuple):
    """What moves in a face; 0 is at rest, 1 (or -1) is the full movement."""

    brow_tilt: float
    """Inner ends of the brows down (anger) or up (fear, sadness)."""
    brow_lift: float
    eye_opening: float
    mouth_curve: float
    """Corners of the mouth up or down."""
    mouth_opening: float
    mouth_width: float
    nose_wrinkle: float


EXPRESSIONS = {
    "angry": Expression(0.90, -0.50, -0.20, -0.55, 0.15, -0.10, 0.10),
    "disgust": Expression(0.60, -0.45, -0.50, -0.55, 0.30, -0.10, 1.00),
    "fear": Expression(-0.75, 0.60, 0.75, -0.35, 0.55, 0.25, 0.00),
    "happy": Expression(0.00, 0.10, -0.25, 1.00, 0.35, 0.60, 0.00),
    "sad": Expression(-0.65, -0.10, -0.40, -0.65, 0.00, -0.20, 0.00),
    "surprise": Expression(-0.10, 0.90, 0.90, 0.00, 0.95, -0.40, 0.00),
    "neutral": Expression(0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00),
}
"""The full expression of each emotion.

Neighbours as in FER-2013: disgust and angry, fear and surprise, sad and neutral.
"""

# These three determine how far the emotions overlap at difficulty 1.
INTENSITY = (0.35, 1.0)
"""Least and greatest share of the full expression that a face shows; at the lower end all look neutral."""
SPREAD = 0.22
"""Standard deviation of every movement around its emotion's."""
NOISE = (4.0, 22.0)
"""Least and greatest standard deviation of the pixel noise, in gray levels."""

_CANVAS = 4 * IMAGE_SIZE
"""Drawn this large and then averaged down, which smooths all edges."""
_CIRCLE = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_ARC = np.linspace(-1, 1, 13)


MAX_IMAGES = 100_000
"""Most images that are drawn, in a minute or two: a recorded configuration may ask for any number."""


def draw(images: int = 3000, seed: int = 0, difficulty: float = 1.0, least_per_class: int = LEAST_PER_CLASS) -> Faces:
    """Draw faces with FER-2013's class ratios and its three usages (80, 10 and 10 % of the images).

    Args:
        images: how many; each test usage has a tenth of them, but at least ``least_per_class`` of each emotion.
        seed: the same seed draws the same images, on every machine that rounds alike.
        difficulty: from 0 (full expressions without noise) to 1 (expressions overlap much as in FER-2013).
        least_per_class: minimum images of each emotion in every usage.

    Returns:
        Faces of distinct images, with ``synthetic`` set.

    Raises:
        UserError: too few images for ``least_per_class`` of each emotion in each usage, or an argument out of range.
    """
    if not 0 <= difficulty <= 1:
        raise UserError(f"data.source.difficulty={difficulty} is out of range: give 0 (clear faces) to 1 (hard ones)")
    if not 0 <= seed < 2**32:
        raise UserError(f"data.source.seed={seed} is out of range: give 0 to 4294967295")
    if least_per_class < 1:
        raise UserError(f"data.source.least_per_class={least_per_class} is out of range: give 1 or more")
    least = least_per_class * len(EMOTIONS)
    if images < 3 * least:
        raise UserError(
            f"data.source.images={images}: {3 * least} or more are needed ({least_per_class} of each emotion"
            " in Training, PublicTest and PrivateTest)"
        )
    if images > MAX_IMAGES:
        raise UserError(f"data.source.images={images}: at most {MAX_IMAGES:,} are drawn")
    test_size = max(round(TEST_SHARE * images), least)
    sizes = (images - 2 * test_size, test_size, test_size)
    labels, usage = [], []
    for number, size in enumerate(sizes):
        counts = apportion(size, CLASS_WEIGHTS, least=least_per_class)
        labels += [label for label, count in enumerate(counts) for _ in range(count)]
        usage += [number] * size
    rng = np.random.default_rng(seed)
    order = rng.permutation(images)
    labels_drawn = np.array(labels)[order]
    usage_drawn = np.array(usage)[order]
    pixels = np.stack([_draw_face(EXPRESSIONS[EMOTIONS[label]], rng, difficulty) for label in labels_drawn])
    ids = np.array(
        [
            f"drawn/{EMOTIONS[label]}/{USAGES[use]}_{n}"
            for n, (label, use) in enumerate(zip(labels_drawn, usage_drawn, strict=True))
        ]
    )
    return Faces.from_arrays(pixels, labels_drawn, usage_drawn, ids, kind="drawn faces", synthetic=True)


def _draw_face(full: Expression, rng: np.random.Generator, difficulty: float = 1.0) -> np.ndarray:
    """One face, (48, 48) uint8: a random person, pose and light, and a random share of an expression."""
    faintest, strongest = INTENSITY
    intensity = rng.uniform(faintest + (1 - difficulty) * (strongest - faintest), strongest)
    shown = Expression(*(np.array(full) * intensity + rng.normal(0, difficulty * SPREAD, len(full))))
    skin = rng.uniform(110, 215)
    dark = skin * rng.uniform(0.25, 0.5)
    background = rng.uniform(20, 235)
    to_canvas = _pose(rng)
    turn = rng.uniform(-0.15, 0.15)

    canvas = np.full((_CANVAS, _CANVAS), background, np.float32)
    head_width, head_height = rng.uniform(0.68, 0.82), rng.uniform(0.92, 1.05)
    _fill(canvas, to_canvas, _ellipse(0, 0, head_width * 1.08, head_height * 1.08, bottom=0.35), dark * 0.8)
    _fill(canvas, to_canvas, _ellipse(0, 0.06, head_width, head_height), skin)
    for side in (-1, 1):
        _draw_eye(canvas, to_canvas, side, turn, shown, skin, dark, rng)
    _draw_nose(canvas, to_canvas, turn, shown, skin, dark)
    _draw_mouth(canvas, to_canvas, turn, shown, skin, dark)

    small = cv2.resize(canvas, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    light = 1 + rng.uniform(0, 0.35) * (np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None])
    noise = rng.normal(0, difficulty * rng.uniform(*NOISE), small.shape)
    return np.clip(small * light * rng.uniform(0.7, 1.15) + noise, 0, 255).astype(np.uint8)


def _pose(rng: np.random.Generator) -> np.ndarray:
    """(2, 3) affine map from face coordinates (the head fills about -1 to 1, y downwards) to the canvas."""
    angle = rng.normal(0, 0.14)
    scale = rng.uniform(0.42, 0.52) * _CANVAS
    squeeze = rng.uniform(0.88, 1.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = _CANVAS * (0.5 + rng.uniform(-0.06, 0.06, 2))
    return np.column_stack([rotation * [squeeze, 1.0] * scale, centre])


def _draw_eye(
    canvas: np.ndarray,
    to_canvas: np.ndarray,
    side: int,
    turn: float,
    shown: Expression,
    skin: float,
    dark: float,
    rng: np.random.Generator,
) -> None:
    x, y = side * 0.32 + turn, -0.18
    opening = float(np.clip(0.10 * (1 + 0.85 * shown.eye_opening), 0.02, 0.2))
    _fill(canvas, to_canvas, _ellipse(x, y, 0.17, opening), min(255.0, skin * 1.25 + 20))
    iris = min(opening, 0.085)
    _fill(canvas, to_canvas, _ellipse(x + 0.5 * turn + rng.normal(0, 0.015), y, 0.08, iris), dark * 0.5)
    _stroke(canvas, to_canvas, np.column_stack([x + 0.17 * _ARC, y - opening * (1 - _ARC**2)]), dark, 0.035)
    # The inner end is the one towards the nose, so the tilt mirrors with the side.
    inner = -side * _ARC
    brow = y - 0.24 - 0.12 * shown.brow_lift + 0.10 * shown.brow_tilt * inner - 0.03 * (1 - _ARC**2)
    _stroke(canvas, to_canvas, np.column_stack([x + 0.2 * _ARC, brow]), dark * 0.7, 0.07)


def _draw_nose(
    canvas: np.ndarray, to_canvas: np.ndarray, turn: float, shown: Expression, skin: float, dark: float
) -> None:
    shade = 0.4 * skin + 0.6 * dark
    x = 1.3 * turn
    wrinkle = float(np.clip(shown.nose_wrinkle, 0, 1.3))
    base = 0.24 - 0.05 * wrinkle
    nose = np.array([[x - 0.03, -0.1], [x - 0.11, base], [x, base + 0.04], [x + 0.11, base]])
    _stroke(canvas, to_canvas, nose, shade, 0.04)
    for height in (-0.10, -0.02, 0.06):
        line = np.column_stack([x + 0.11 * _ARC, height - 0.05 * (1 - np.abs(_ARC))])
        _stroke(canvas, to_canvas, line, skin + wrinkle * (shade - skin), 0.03)
    for side in (-1, 1):
        fold = np.array(
            [[x + side * 0.16, base - 0.06], [x + side * 0.28, base + 0.08], [x + side * 0.32, base + 0.22]]
        )
        _stroke(canvas, to_canvas, fold, skin + 0.7 * wrinkle * (shade - skin), 0.035)


def _draw_mouth(
    canvas: np.ndarray, to_canvas: np.ndarray, turn: float, shown: Expression, skin: float, dark: float
) -> None:
    x, y = 1.1 * turn, 0.55
    half = 0.28 * (1 + 0.4 * float(np.clip(shown.mouth_width, -1, 1)))
    opening = 0.19 * float(np.clip(shown.mouth_opening, 0, 1.2))
    along = x + half * _ARC
    middle = y + 0.15 * shown.mouth_curve * (0.5 - _ARC**2)
    gape = opening * np.sqrt(1 - _ARC**2)
    upper, lower = np.column_stack([along, middle - 0.6 * gape]), np.column_stack([along, middle + gape])
    lips = 0.35 * skin + 0.65 * dark
    _fill(canvas, to_canvas, np.concatenate([upper, lower[::-1]]), dark * 0.4)
    _stroke(canvas, to_canvas, upper, lips, 0.055)
    _stroke(canvas, to_canvas, lower, lips, 0.055)


def _ellipse(x: float, y: float, width: float, height: float, bottom: float = 1.0) -> np.ndarray:
    """Outline with half axes ``width`` and ``height``, cut off below ``bottom`` times its height."""
    return np.column_stack([x + width * np.cos(_CIRCLE), y + height * np.minimum(np.sin(_CIRCLE), bottom)])


def _fill(canvas: np.ndarray, to_canvas: np.ndarray, points: np.ndarray, gray: float) -> None:
    cv2.fillPoly(canvas, [_pixels(to_canvas, points)], (float(gray),))


def _stroke(canvas: np.ndarray, to_canvas: np.ndarray, points: np.ndarray, gray: float, width: float) -> None:
    scale = float(np.hypot(to_canvas[0, 1], to_canvas[1, 1]))
    cv2.polylines(canvas, [_pixels(to_canvas, points)], False, (float(gray),), max(1, round(width * scale)))


def _pixels(to_canvas: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.rint(points @ to_canvas[:, :2].T + to_canvas[:, 2]).astype(np.int32)
