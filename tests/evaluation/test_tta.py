"""Views of an image, and that averaging them is what it says."""

import numpy as np
import pytest
import torch

from fer_lightning.evaluation import probabilities, tta

IMAGES = torch.arange(2 * 48 * 48, dtype=torch.float32).reshape(2, 48, 48)


def test_flip_is_the_image_and_its_mirror():
    image, mirror = tta.flip(IMAGES)
    assert torch.equal(image, IMAGES)
    assert torch.equal(mirror, IMAGES.flip(-1))


def test_ten_crop_is_corners_and_centre_and_their_mirrors():
    views = tta.ten_crop(IMAGES)
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    crops = [IMAGES[:, top : top + 44, left : left + 44] for top, left in places]
    assert len(views) == 10
    for view, crop in zip(views[:5], crops, strict=True):
        assert torch.equal(view, crop)
    result = {tuple(view.flatten().tolist()) for view in views[5:]}
    assert result == {tuple(crop.flip(-1).flatten().tolist()) for crop in crops}


class Peek(torch.nn.Module):
    """Logits that depend on the side of an image that is lit, and the largest batch seen."""

    image_size = 48
    largest = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, len(images))
        half = images.shape[-1] // 2
        left, right = (part.float().mean(dim=(1, 2)) for part in (images[..., :half], images[..., half:]))
        return torch.stack([left, right, *[torch.zeros_like(left)] * 5], dim=1) / 50


@pytest.fixture
def images() -> np.ndarray:
    lit = np.zeros((probabilities.BATCH_SIZE + 3, 48, 48), np.uint8)
    lit[:, :, :24] = 200
    return lit


def test_probabilities_are_averaged_not_logits(images):
    result = probabilities.predict(Peek(), images, torch.device("cpu"), tta.VIEWS["flip"])
    one, other = (torch.tensor([a, b, 0, 0, 0, 0, 0]).double().softmax(0) for a, b in ((4.0, 0.0), (0.0, 4.0)))
    expected = ((one + other) / 2).numpy()
    np.testing.assert_allclose(result, np.tile(expected, (len(images), 1)), atol=1e-6)


def test_batches_stay_as_small_as_without(images):
    model = Peek()
    probabilities.predict(model, images, torch.device("cpu"), tta.VIEWS["ten_crop"])
    assert model.largest == probabilities.BATCH_SIZE


def test_large_images_come_in_smaller_batches(images):
    model = Peek()
    model.image_size = 96
    assert len(probabilities.predict(model, images, torch.device("cpu"))) == len(images)
    assert model.largest == probabilities.BATCH_SIZE // 4
