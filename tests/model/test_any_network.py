"""Image classifiers of timm other than EfficientNet: one of each kind, through train, resume, tools."""

import json

import pytest
import torch
from command_line import TINY
from legs import every_nth, every_third

from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import head_of, stem_of

KINDS = ("test_resnet", "test_byobnet", "test_mambaout", "test_vit", "test_convnext", "mobilenetv3_small_050")
NETWORK = ("model=resnet18", "model.weights=none", "model.head.hidden=[16]", "model.image_size=32")
RUN = (*(word for word in TINY if not word.startswith("model")), *NETWORK, "data.source.images=200")


@pytest.mark.parametrize("name", every_nth(6, KINDS))
def test_trains_and_answers_the_same_again(cli, tmp_path, name):
    outcome = cli(*RUN, f"model.name={name}", "hydra.run.dir=run", "optim.layer_decay=0.8", "model.freeze_epochs=1")
    assert outcome.code == 0, outcome.err
    model = EmotionClassifier.load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    images = torch.zeros(2, 48, 48, dtype=torch.uint8)
    assert model(images).shape == (2, 7)
    torch.testing.assert_close(head_of(model.network)[-1](model.features(images)), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", every_third(("test_resnet", "test_vit", "test_convnext")))
def test_second_stage_and_resume(cli, tmp_path, name):
    words = (*RUN, f"model.name={name}", "imbalance=crt", "trainer.max_epochs=2", "hydra.run.dir=run")
    assert cli(*words).code == 0
    assert cli(*words, "resume=auto").code == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train/steps"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    every_third(
        [
            (["model.name=resnet19"], "model.name=resnet19: not an image classifier of timm"),
            (["model.name=test_vit", "model.stem_stride=1"], "model.stem_stride=1: test_vit has no first convolution"),
            (
                ["model.name=test_vit", "model.first_image_size=32", "model.image_size=48"],
                "test_vit has one input size",
            ),
            (["model.name=inception_v4", "model.image_size=48"], "takes no images of 48 pixels"),
            (["model.name=deit_tiny_distilled_patch16_224"], "its classifier is not a single linear layer"),
        ]
    ),
)
def test_mistakes_are_one_line(cli, words, message):
    outcome = cli(*RUN, *words)
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.nightly
def test_stem_stride_keeps_the_resolution(cli, tmp_path):
    outcome = cli(*RUN, "model.name=test_resnet", "model.stem_stride=1", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    stem = stem_of(EmotionClassifier.load(tmp_path / "run" / "checkpoints" / "best.ckpt").network)
    assert stem is not None
    assert stem.stride == (1, 1)
