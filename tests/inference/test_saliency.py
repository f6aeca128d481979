"""Saliency maps: they mark the pixels that the prediction depends on, and leave the model unchanged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY

from fer_lightning.data.faces import EMOTIONS, Faces
from fer_lightning.data.synthetic import draw
from fer_lightning.evaluation.probabilities import predict
from fer_lightning.inference import saliency
from fer_lightning.model.classifier import EmotionClassifier

CPU = torch.device("cpu")
SURPRISE = EMOTIONS.index("surprise")


@pytest.fixture(scope="module")
def trained(trained_once: Callable[..., Path]) -> EmotionClassifier:
    """A model trained briefly on drawn faces; shared, so do not change it."""
    more = ("data.source.images=1000", "optim.lr=0.004", "trainer.max_epochs=6", "model.stem_stride=2")
    return EmotionClassifier.load(trained_once(*TINY, *more) / "checkpoints" / "best.ckpt")


@pytest.fixture(scope="module")
def faces() -> Faces:
    """Others than the model was trained on."""
    return draw(200, seed=7)


@pytest.fixture(scope="module")
def answers(trained: EmotionClassifier, faces: Faces) -> np.ndarray:
    return predict(trained, faces.images, CPU).argmax(axis=1)


@pytest.fixture(scope="module")
def maps(trained: EmotionClassifier, faces: Faces, answers: np.ndarray) -> np.ndarray:
    return saliency.saliency_maps(trained, faces.images, answers, CPU)


@pytest.fixture
def untrained() -> Callable[..., EmotionClassifier]:
    def build(name: str = "test_efficientnet", image_size: int = 48, stem_stride: int = 2) -> EmotionClassifier:
        torch.manual_seed(0)
        head = {"hidden": [8], "activation": "ReLU", "batch_norm": True, "dropout": 0.5}
        arguments = {"name": name, "weights": "none", "in_channels": 1, "image_size": image_size}
        more = {"stem_stride": stem_stride, "drop_path": 0.0, "head": head, "freeze_epochs": 0}
        return EmotionClassifier({**arguments, **more}, {}, [1] * 7, {}, {}).eval()

    return build


class TestWhatTheyPointAt:
    @pytest.mark.nightly
    def test_hiding_the_salient_pixels_first_costs_most(self, trained, faces, answers, maps):
        """The deletion check: sooner than patches at random, which are sooner than the least salient."""
        first, random, last = (
            saliency.deletion(trained, faces.images[:80], answers[:80], order[:80], CPU)
            for order in (maps, saliency.random_patches(len(maps), 48), -maps)
        )
        assert first.mean() < random.mean() - 0.03
        assert random.mean() < last.mean() - 0.03
        assert (first < last).mean() > 0.75

    @pytest.mark.nightly
    def test_the_map_of_another_face_does_not_do(self, trained, faces, answers, maps):
        """The map is of this face, not of where faces are."""
        own, others = (
            saliency.deletion(trained, faces.images[:80], answers[:80], order[:80], CPU).mean()
            for order in (maps, np.roll(maps, 1, axis=0))
        )
        assert own < others - 0.03

    @pytest.mark.slow
    def test_other_emotion_other_map(self, trained, faces, answers, maps):
        others = saliency.saliency_maps(trained, faces.images, np.full(len(faces), SURPRISE), CPU)
        same = answers == SURPRISE
        assert 0 < same.sum() < len(faces)
        np.testing.assert_array_equal(others[same], maps[same])
        assert np.abs(others[~same] - maps[~same]).mean() > 0.05


@pytest.mark.slow
class TestMaps:
    def test_form(self, maps):
        assert (maps.shape, maps.dtype) == ((200, 48, 48), np.float32)
        assert maps.min() >= 0
        np.testing.assert_allclose(maps.max(axis=(1, 2)), 1)

    def test_one_face_alone_is_explained_the_same(self, trained, faces, answers, maps):
        assert len(maps) > saliency.BATCH_SIZE
        one = saliency.saliency_maps(trained, faces.images[-1:], answers[-1:], CPU)
        np.testing.assert_allclose(one, maps[-1:], atol=1e-3)

    def test_no_face_no_map(self, trained):
        none = np.zeros((0, 48, 48), np.uint8)
        assert saliency.saliency_maps(trained, none, np.zeros(0, int), CPU).shape == (0, 48, 48)

    def test_frozen_parameters_make_no_difference(self, untrained, faces):
        some, emotions = faces.images[:5], np.arange(5)
        free = saliency.saliency_maps(untrained(), some, emotions, CPU)
        frozen = saliency.saliency_maps(untrained().requires_grad_(False), some, emotions, CPU)
        np.testing.assert_array_equal(free, frozen)
        assert free.max() == 1

    def test_without_evidence_the_map_is_empty(self, untrained, faces):
        model = untrained()
        with torch.no_grad():
            model.network.classifier[-1].weight.zero_()
        assert not saliency.saliency_maps(model, faces.images[:3], np.arange(3), CPU).any()

    def test_the_model_stays_as_it_was(self, untrained, faces):
        model = untrained()
        before = {name: value.clone() for name, value in model.state_dict().items()}

        def hooks() -> int:
            return sum(
                len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
                for module in model.modules()
            )

        count = hooks()
        for _ in range(3):
            saliency.saliency_maps(model, faces.images[:3], np.arange(3), CPU)
        assert hooks() == count
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "image_size", "stem_stride", "cells"),
    [
        ("test_efficientnet", 48, 2, [24, 12, 6]),
        ("test_efficientnet", 48, 1, [24, 12, 6]),
        ("tf_efficientnetv2_b0", 64, 2, [16, 8, 4]),
        ("efficientnet_b0", 224, 2, [28, 14, 7]),
    ],
)
def test_layers_are_the_last_resolutions_with_enough_cells(untrained, name, image_size, stem_stride, cells):
    model, found = untrained(name, image_size, stem_stride), []
    for layer in saliency.layers(model):
        layer.register_forward_hook(lambda module, inputs, output: found.append(output.shape[-1]))
    with torch.inference_mode():
        model(torch.zeros(1, 48, 48))
    assert found == cells


class TestHiding:
    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
    def test_the_first_pixels_are_blurred_and_no_others(self, faces, share):
        images = faces.images[:4]
        order = np.random.default_rng(0).random(images.shape)
        hidden = saliency.hide(images, order, share)
        # The place of each pixel in its face's order, 0 for the highest.
        places = (-order.reshape(4, -1)).argsort(axis=1).argsort(axis=1).reshape(images.shape)
        first = places < share * 48 * 48
        assert (hidden.dtype, hidden.shape) == (np.uint8, images.shape)
        np.testing.assert_array_equal(hidden[~first], images[~first])
        if share:
            assert (hidden != images)[first].mean() > 0.9

    def test_area_of_a_model_that_does_not_care(self, untrained, faces):
        model = untrained()
        with torch.no_grad():
            model.network.classifier[-1].weight.zero_()
            model.network.classifier[-1].bias.zero_()
        areas = saliency.deletion(model, faces.images[:3], np.arange(3), saliency.random_patches(3, 48), CPU)
        np.testing.assert_allclose(areas, 1 / 7)


def test_mean_maps():
    maps = np.stack([np.full((2, 2), value, np.float32) for value in (0.2, 0.4, 0.9)])
    means = saliency.mean_maps(maps, np.array([2, 2, 0]), 4)
    np.testing.assert_allclose(means[:, 0, 0], [0.9, 0, 0.3, 0])


@pytest.mark.slow
def test_test_set_is_explained_where_it_is_classified_correctly(trained, faces, answers, maps):
    found = saliency.explain_test_set(trained, faces.images, faces.labels, CPU)
    right = answers == faces.labels
    assert found.total.tolist() == np.bincount(faces.labels, minlength=7).tolist()
    assert found.right.tolist() == np.bincount(faces.labels[right], minlength=7).tolist()
    happy = right & (faces.labels == EMOTIONS.index("happy"))
    assert happy.any()
    np.testing.assert_allclose(found.maps[EMOTIONS.index("happy")], maps[happy].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found.faces[EMOTIONS.index("happy")], faces.images[happy].mean(axis=0), atol=1e-3)
    assert found.checked == right.sum()
    assert found.deletion["salient first"] < found.deletion["at random"] < found.deletion["salient last"]
