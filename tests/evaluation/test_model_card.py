"""Model cards: their content, where they are written, and what is uploaded to a stand-in for the Hub."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from archives import write_folder
from command_line import TINY
from hub_server import hub_server
from huggingface_hub import ModelCard, constants

from fer_lightning import card
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.evaluation.hub import upload
from fer_lightning.evaluation.model_card import (
    MARKER,
    _data,
    make_card,
    write_card,
)
from fer_lightning.evaluation.scorecard import store
from fer_lightning.evaluation.trained_model import TrainedModel, read_trained_model
from fer_lightning.model.checkpoint import StoredModel
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json, write_json
from fer_lightning.runtime.run_folder import write_status


@pytest.fixture
def trained(trained_once) -> Path:
    """The run folder of a tiny model; shared, so do not change it."""
    return trained_once(*TINY, "figures=true")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def real_run(run) -> Path:
    """The copy, as a run on real faces would have left it: only what its files say is changed."""
    metrics = read_json(run / "metrics.json")
    metrics |= {"synthetic": False, "data": "fer2013", "test/n": 3589, "test_dedup/n": 3301}
    write_json(run / "metrics.json", metrics)
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    (run / "predictions.csv").unlink()  # of other faces
    shutil.rmtree(run / "checkpoints")
    config["model"]["weights"] = "/home/somebody/secret/v2.safetensors"
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def written(path: Path) -> ModelCard:
    return ModelCard.load(path)


def test_a_pipe_in_place_of_the_card_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "README.md")
    with pytest.raises(UserError, match=r"README\.md: is not a regular file"):
        write_card("text", tmp_path / "README.md", force=False)


class TestText:
    @pytest.mark.slow
    def test_scores_stand_in_the_text_and_in_the_head(self, run):
        card.main([str(run)])
        metrics, made = read_json(run / "metrics.json"), written(run / "README.md")
        results = {(r.dataset_config, r.metric_type): r.metric_value for r in made.data.eval_results}
        assert results == {
            (name, kind): round(metrics[f"{name}/{key}"], 4)
            for name in ("test", "test_dedup")
            for key, kind in (("accuracy", "accuracy"), ("balanced_accuracy", "recall"), ("f1_macro", "f1"))
        }
        assert f"| accuracy | {100 * metrics['test/accuracy']:.1f} % |" in made.text
        assert f"temperature {metrics['temperature']:.3f}" in made.text
        for emotion in EMOTIONS:
            recall = f"{100 * metrics[f'test/recall/{emotion}']:.1f} %"
            assert f"| {emotion} | {metrics['train/class_counts'][emotion]} | {recall} |" in made.text
        assert "![Confusion matrix](confusion_matrix.png)" in made.text

    @pytest.mark.slow
    def test_drawn_faces_are_reported_first(self, run):
        card.main([str(run)])
        made = written(run / "README.md")
        first = made.text.replace(MARKER, "").strip().splitlines()[0]
        assert first.startswith("> **Trained and tested on drawn (synthetic) faces.")
        assert (made.data.license, made.data.datasets) == ("mit", None)
        assert "FER+" not in made.text

    @pytest.mark.slow
    def test_real_faces_bring_their_caveats_and_terms(self, real_run):
        card.main([str(real_run)])
        made = written(real_run / "README.md")
        assert (made.data.license, made.data.datasets) == ("other", ["fer2013"])
        assert "drawn" not in made.text
        for words in (
            "The labels are noisy",
            "288 of 3,589 have one here",
            "FER-2013 (Goodfellow",
            "(usually ImageNet)",
        ):
            assert words in made.text
        assert "file `v2.safetensors`" in made.text
        assert "secret" not in str(made)

    @pytest.mark.slow
    def test_other_classes_bring_no_words_about_emotions(self, run):
        text = (run / "metrics.json").read_text()
        for emotion in EMOTIONS:
            text = text.replace(f'"{emotion}"', f'"{emotion}fish"').replace(f'/{emotion}"', f'/{emotion}fish"')
        (run / "metrics.json").write_text(text)
        metrics = read_json(run / "metrics.json")
        write_json(run / "metrics.json", {**metrics, "synthetic": False, "data": "folder", "data_folder": "aquarium"})
        (run / "predictions.csv").unlink()  # of emotions
        shutil.rmtree(run / "checkpoints")
        card.main([str(run)])
        text = written(run / "README.md").text
        assert "angryfish, disgustfish" in text
        assert f"# aquarium {metrics['model']} none" in text
        assert "labels=fer" not in text
        assert (
            "were cut from the training images. The epoch with the highest macro F1 on the validation images was kept."
            in text
        )
        for words in ("emotion labels", "hiring", "AI Act", "Demographics", "face.jpg", "--faces"):
            assert words not in text
        assert "**Where images show people**" in text

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "text",
        ["<img src=http://evil.example/>[a](http://evil.example) a|b {{ 77 * 77 }}", "a\n---\n# b\x1b[31m"],
    )
    def test_what_others_wrote_is_shown_as_it_is(self, run, text):
        trained = read_trained_model(run)
        metrics = {key: text if isinstance(value, str) else value for key, value in trained.metrics.items()}
        config = {**trained.config, "split": {"name": text, "fold": text, "folds": text}}
        content = str(make_card(TrainedModel({**metrics, "synthetic": False}, config, None), None))
        made = ModelCard(content)
        names = [made.data.model_name, *(result.dataset_name for result in made.data.eval_results)]
        assert not re.search(r"[^\w .,:+=%()-]", " ".join(names)), "readers show the metadata as markdown too"
        body = made.text.replace(MARKER, "")
        assert not re.search(r"<|\]\(http://|\x1b|^# b|5929", body, re.MULTILINE)
        for block in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1

    def test_class_weights_by_hand_are_named(self, run):
        assert "class weights" not in str(make_card(read_trained_model(run), None))
        path = run / ".hydra" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config["imbalance"]["loss"]["weights"] = {"disgust": 5, "fear": 2}
        path.write_text(yaml.safe_dump(config))
        made = str(make_card(read_trained_model(run), None))
        assert "| class weights by hand | `weights.disgust=5, weights.fear=2` |" in made

    def test_scores_that_are_not_those_of_the_predictions_are_refused(self, run):
        write_json(run / "metrics.json", {**read_json(run / "metrics.json"), "test/accuracy": 0.99})
        with pytest.raises(
            UserError, match=r"run: predictions\.csv has test/accuracy of 0\.\d+, metrics\.json one of 0\.99"
        ):
            card.main([str(run)])
        assert not (run / "README.md").exists()

    def test_scores_of_another_kind_are_one_line(self, run):
        (run / "predictions.csv").unlink()
        shutil.rmtree(run / "checkpoints")
        whole = read_json(run / "metrics.json")
        for key, value in (("test/n", "many"), ("test/n", -5), ("test/accuracy", 7.0)):
            write_json(run / "metrics.json", {**whole, key: value})
            with pytest.raises(UserError, match=rf"run: .*{key}"):
                card.main([str(run)])

    def test_the_checkpoint_of_another_run_is_refused(self, run, trained):
        best = run / "checkpoints" / "best.ckpt"
        model = StoredModel.read(best)
        store(model, {**model.content["hyper_parameters"]["scorecard"], "seed": 7})
        with pytest.raises(
            UserError, match=r"best\.ckpt is of another model than metrics\.json \(seed is 7 there, 0 here"
        ):
            card.main([str(run)])
        shutil.copy(trained / "checkpoints" / "best.ckpt", best)
        metrics = read_json(run / "metrics.json")
        write_json(run / "metrics.json", {**metrics, "train/class_counts": {name: 1 for name in EMOTIONS}})
        with pytest.raises(UserError, match=r"of another model than metrics\.json \(train/class_counts is"):
            card.main([str(run)])
        assert not (run / "README.md").exists()

    def test_a_checkpoint_has_a_card_from_its_scorecard(self, trained, capfd):
        card.main([str(trained / "checkpoints" / "best.ckpt")])
        made = ModelCard(capfd.readouterr().out)
        metrics = read_json(trained / "metrics.json")
        assert made.data.eval_results[0].metric_value == round(metrics["test/accuracy"], 4)
        assert "confusion_matrix.png" not in made.text
        assert f"{sum(metrics['train/class_counts'].values())} training images" in made.text


class TestFile:
    def test_another_place_links_the_picture(self, run, tmp_path):
        (tmp_path / "cards").mkdir()
        card.main([str(run), "--out", str(tmp_path / "cards" / "CARD.md")])
        assert "![Confusion matrix](../run/confusion_matrix.png)" in (tmp_path / "cards" / "CARD.md").read_text()
        assert not (run / "README.md").exists()

    def test_its_own_card_is_overwritten_and_no_other_file(self, run):
        readme = run / "README.md"
        card.main([str(run)])
        card.main([str(run)])
        edited = readme.read_text().replace(MARKER, "")
        readme.write_text(edited)
        with pytest.raises(UserError, match=r"README\.md: was not written by this tool, or edited since"):
            card.main([str(run)])
        assert readme.read_text() == edited
        card.main([str(run), "--force"])
        assert MARKER in readme.read_text()

    def test_mistakes_are_one_line(self, run, trained, tmp_path):
        empty = tmp_path / "empty"
        empty.mkdir()
        untested = shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "untested.ckpt")
        store(StoredModel.read(Path(untested)), {})
        write_status(run, "failed", "out of memory")
        for path, message in (
            (tmp_path / "gone", "gone: no such run or checkpoint; give a run's folder"),
            (empty, "empty: not a run (it has no status.json)"),
            (run, "run: this run is failed; only a finished one has a card"),
            (untested, "untested.ckpt: was never tested, so it has no scorecard"),
            (trained / "metrics.json", "metrics.json: not a checkpoint, or a damaged one"),
        ):
            with pytest.raises(UserError) as caught:
                card.main([str(path)])
            assert message in str(caught.value)
            assert "\n" not in str(caught.value)
        assert not (run / "README.md").exists()


@pytest.mark.slow
class TestPush:
    @pytest.fixture
    def push(self, process, run, tmp_path):
        """The command in a process of its own, with an account of its own."""

        def call(endpoint: str, repo: str = "somebody/faces"):
            account = {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
            return process(str(run), "--push", repo, module="fer_lightning.card", HF_ENDPOINT=endpoint, **account)

        return call

    def test_one_commit_holds_everything(self, push, run):
        with hub_server("hf_secret") as hub:
            outcome = push(hub.endpoint)
        assert outcome.code == 0, outcome.err
        assert f"pushed to {hub.endpoint}/somebody/faces" in outcome.out
        assert hub.commits == 1
        (made,) = hub.created
        assert made.get("private") is True or made.get("visibility") == "private"  # by the client's version
        assert set(hub.files) == {"README.md", "best.ckpt", "metrics.json", "confusion_matrix.png"}
        assert hub.files["best.ckpt"] == (run / "checkpoints" / "best.ckpt").read_bytes()
        assert json.loads(hub.files["metrics.json"]) == read_json(run / "metrics.json")
        made = ModelCard(hub.files["README.md"].decode())
        assert "hf download somebody/faces best.ckpt" in made.text
        assert "![Confusion matrix](confusion_matrix.png)" in made.text
        assert "hf_secret" not in outcome.out + outcome.err

    @pytest.mark.nightly
    def test_a_wrong_token_is_one_line(self, push):
        with hub_server("another") as hub:
            outcome = push(hub.endpoint)
        assert outcome.code == 2
        assert outcome.error.startswith("error: --push=somebody/faces: the Hub refuses (401: ")
        assert not hub.files

    @pytest.mark.nightly
    def test_no_network_is_one_line(self, push):
        outcome = push("http://127.0.0.1:9")
        assert outcome.code == 2
        assert outcome.error.startswith("error: --push=somebody/faces: the Hub cannot be reached (")

    def test_without_an_account_it_says_how_to_log_in(self, run, tmp_path, monkeypatch):
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        with pytest.raises(
            UserError, match="not logged in to the Hugging Face Hub; run hf auth login, or set HF_TOKEN"
        ):
            card.main([str(run), "--push", "somebody/faces"])

    def test_a_checkpoint_alone_is_not_pushed(self, trained):
        with pytest.raises(UserError, match=r"--push .*: needs the folder of a run, not a checkpoint"):
            card.main([str(trained / "checkpoints" / "best.ckpt"), "--push", "somebody/faces"])

    def test_a_link_to_another_place_is_not_uploaded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        run = write_folder({"checkpoints/best.ckpt": b"", "metrics.json": b"{}"}, tmp_path / "run")
        (tmp_path / "id_rsa").write_text("private")
        (run / "confusion_matrix.png").symlink_to(tmp_path / "id_rsa")
        with pytest.raises(UserError, match=r"confusion_matrix\.png: is a link that points outside"):
            upload(run, "text", "confusion_matrix.png", "somebody/faces")

    def test_a_bad_name_is_one_line(self, run, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with pytest.raises(UserError, match="--push a/b/c: must be USER/NAME"):
            card.main([str(run), "--push", "a/b/c"])


@pytest.mark.parametrize(
    ("classes", "name"), [(EMOTIONS, "FER-2013"), (("positive", "negative"), "FER-2013 in 2 classes")]
)
def test_scores_on_joined_classes_are_not_those_on_seven(classes, name):
    trained = TrainedModel({"data": "fer2013", "train/class_counts": dict.fromkeys(classes, 1)}, {}, None)
    assert _data(trained) == name
