"""The content of the demo page: the faces of a photo, their predictions, and saliency maps."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import gradio
import numpy as np
import torch

from fer_lightning.data.archives import MAX_PIECE
from fer_lightning.data.images import as_face, as_picture, decode
from fer_lightning.evaluation.probabilities import classify
from fer_lightning.evaluation.scorecard import scorecard_line
from fer_lightning.inference import saliency
from fer_lightning.inference.detect import Box, crop_face, find_faces
from fer_lightning.inference.saliency_figures import overlay
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.escapes import to_html
from fer_lightning.runtime.errors import UserError

MAX_SIDE = 1280
"""Largest longer side, in pixels, of the photo shown."""

HEIGHT = 320
"""Height of a photo on the page, in pixels, so that the predictions stay in view on a narrow screen."""

FACE = 192
"""Side of a face on the page, in pixels."""

MAX_PIXELS = 2**24
"""Pixels of a photo that faces are searched in; a larger one is reduced."""

MAX_RATIO = 8
"""Largest ratio of a photo's sides: the smallest face searched for is a fraction of the shorter one."""

MAX_FACES = 24
"""Faces classified in a photo, the largest ones."""

MAX_WAITING = 64
"""Photos that wait while one is classified."""

NO_FACE_NOTICE = (
    "No face was detected. The central square of the picture is used instead: the result may be meaningless."
)
MANY_FACES_NOTICE = f"Many faces were detected; the {MAX_FACES} largest are shown."
CAVEAT = "The labels record how annotators read a face, not what the person felt."


@dataclass(frozen=True)
class FaceAnswer:
    """A model's prediction for one face.

    Attributes:
        box: in the photo, without the margin of ``face``.
        face: uint8, (H, H) or (3, H, H), the model's input.
        probabilities: (C,), calibrated when the model has a temperature.
        saliency: float32, (H, H), in 0..1: evidence for the most probable class.
    """

    box: Box
    face: np.ndarray
    probabilities: np.ndarray
    saliency: np.ndarray


def read_photo(path: str) -> np.ndarray:
    """Read an upload, reduced to at most ``MAX_PIXELS``.

    Returns:
        uint8, (H, W) gray or (H, W, 3) in the order blue, green, red.

    Raises:
        UserError: the file is gone, too long, or not an image that can be read; the text does not name it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PIECE + 1)
    except OSError:
        raise UserError("The photo is no longer here: upload it again") from None
    photo = decode(data, "The file")
    if max(photo.shape[:2]) > MAX_RATIO * min(photo.shape[:2]):
        raise UserError(f"The photo is more than {MAX_RATIO} times as long as wide: crop it")
    ratio = np.sqrt(MAX_PIXELS / (photo.shape[0] * photo.shape[1]))
    if ratio >= 1:
        return photo
    height, width = (max(1, int(ratio * side)) for side in photo.shape[:2])
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)


def answer_photo(model: EmotionClassifier, photo: np.ndarray, device: torch.device) -> tuple[list[FaceAnswer], str]:
    """Detect the faces of a photo and classify each, at most ``MAX_FACES``.

    Args:
        model: moved to ``device``.
        photo: uint8, (H, W) gray or (H, W, 3) in the order blue, green, red.
        device: where to compute.

    Returns:
        An answer for each face, or one for the central square where no face was detected (or the model is not
        about faces); and a notice, or nothing.
    """
    detected = find_faces(photo) if model.about_faces else []
    boxes = sorted(sorted(detected, key=lambda box: -box.width * box.height)[:MAX_FACES])
    crops = [crop_face(photo, box) for box in boxes]
    notice = MANY_FACES_NOTICE if len(detected) > MAX_FACES else ""
    if not boxes:
        notice = NO_FACE_NOTICE if model.about_faces else ""
        height, width = photo.shape[:2]
        side = min(height, width)
        boxes, crops = [Box((width - side) // 2, (height - side) // 2, side, side)], [photo]
    faces = np.stack([as_face(crop, model.form) for crop in crops])
    probabilities = classify(model, faces, device)
    maps = saliency.saliency_maps(model, faces, probabilities.argmax(axis=1), device)
    return [FaceAnswer(*each) for each in zip(boxes, faces, probabilities, maps, strict=True)], notice


def draw_boxes(photo: np.ndarray, answers: list[FaceAnswer]) -> np.ndarray:
    """The photo, scaled to at most ``MAX_SIDE`` pixels, with a numbered box around each face: uint8 (H, W, 3), RGB."""
    ratio = min(1.0, MAX_SIDE / max(photo.shape[:2]))
    colour = cv2.cvtColor(photo, cv2.COLOR_GRAY2RGB if photo.ndim == 2 else cv2.COLOR_BGR2RGB)
    if ratio < 1:
        colour = cv2.resize(colour, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
    line = max(1, round(max(colour.shape) / 320))
    for number, each in enumerate(answers, start=1):
        x, y, w, h = (round(ratio * value) for value in each.box)
        cv2.rectangle(colour, (x, y), (x + w, y + h), (213, 94, 0), line)
        size = max(0.35, w / 220)
        (width, height), _ = cv2.getTextSize(str(number), cv2.FONT_HERSHEY_SIMPLEX, size, line)
        cv2.rectangle(colour, (x, y), (x + width + 3 * line, y + height + 4 * line), (213, 94, 0), cv2.FILLED)
        place = (x + line, y + height + 2 * line)
        cv2.putText(colour, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), line, cv2.LINE_AA)
    return colour


def as_html(
    answers: list[FaceAnswer], notice: str, classes: Sequence[str], card: dict[str, Any] | None, about_faces: bool
) -> str:
    """A section for each face: the face, its map, bars of the probabilities, and the model's test recall."""
    parts = [f'<p class="notice" role="status">{to_html(notice)}</p>'] if notice else []
    for number, each in enumerate(answers, start=1):
        best, side = int(each.probabilities.argmax()), each.face.shape[-1]
        answer = to_html(classes[best])
        title = f"Face {number}: {answer}" if about_faces else answer
        face = cv2.resize(as_picture(each.face), (FACE, FACE), interpolation=cv2.INTER_CUBIC)
        heat = np.clip(cv2.resize(each.saliency, (FACE, FACE), interpolation=cv2.INTER_CUBIC), 0, 1)
        bars = "".join(
            f'<tr{" class=best" if k == best else ""}><th scope="row">{to_html(classes[k])}</th>'
            f'<td><div class="bar" style="width:{100 * value:.1f}%"></div></td><td>{100 * value:.0f} %</td></tr>'
            for k, value in enumerate(each.probabilities)
        )
        recall = (card or {}).get(f"test/recall/{classes[best]}")
        note = "" if recall is None else f"<p>Test recall of {answer}: {100 * recall:.0f} %.</p>"
        parts.append(
            f'<section class="face"><h3>{title} {100 * each.probabilities[best]:.0f} %</h3>'
            f'<div class="columns">{_figure(face, f"input, {side} x {side} pixels")}'
            f"{_figure(overlay(face if face.ndim == 2 else np.moveaxis(face, -1, 0), heat), f'evidence for {answer}')}"
            f'<div class="chances"><table>{bars}</table></div></div>{note}</section>'
        )
    return "".join(parts)


def build(model: EmotionClassifier, device: torch.device) -> gradio.Blocks:
    """Build the page for one model."""
    card = model.hparams["scorecard"]
    title, caveat = ("Facial expression recognition", CAVEAT) if model.about_faces else ("Image classification", "")
    calibrated = "calibrated on validation images" if (card or {}).get("temperature") else "not calibrated"

    def respond(upload: dict[str, Any] | None) -> tuple[Any, str]:
        if upload is None:
            return gradio.update(value=None, visible=False), ""
        try:
            photo = read_photo(upload["path"])
            answers, notice = answer_photo(model, photo, device)
        except UserError as error:
            return gradio.update(value=None, visible=False), f'<p class="notice" role="alert">{to_html(str(error))}</p>'
        text = as_html(answers, notice, model.classes, card, model.about_faces)
        if answers[0].box == (0, 0, *photo.shape[1::-1]):  # nothing that the photo above does not show
            return gradio.update(value=None, visible=False), text
        return gradio.update(value=draw_boxes(photo, answers), visible=True), text

    with gradio.Blocks(title="fer_lightning", analytics_enabled=False, fill_width=False) as page:
        gradio.HTML(
            f"<h1>{title}</h1>"
            f'<p id="scorecard">This model: {to_html(scorecard_line(card))}. '
            f"Probabilities are {calibrated}. {caveat}</p>"
        )
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                photo = gradio.Image(
                    label="Photo", sources=["upload", "webcam", "clipboard"], elem_id="photo", height=HEIGHT, buttons=[]
                )
                boxes = gradio.Image(
                    show_label=False,
                    alt_text="the photo with a numbered box around each face",
                    interactive=False,
                    visible=False,
                    elem_id="boxes",
                    format="png",
                    buttons=[],
                )
            with gradio.Column(scale=3, min_width=320):
                rows = gradio.HTML(elem_id="answers")
        # The raw file: Gradio's own decoding has no size limits, and its errors are not for users.
        photo.change(respond, photo, [boxes, rows], preprocess=False, api_visibility="private")
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)


def theme() -> gradio.themes.Base:
    """Gradio's default theme with system fonts, so that none is downloaded."""
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _figure(image: np.ndarray, text: str) -> str:
    bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    data = base64.b64encode(cv2.imencode(".png", bgr)[1].tobytes()).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt=""><figcaption>{text}</figcaption></figure>'
