"""The model card of a run, in Hugging Face's format, from the template ``model_card.md``."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fer_lightning.config.settings import flatten
from fer_lightning.data.faces import EMOTIONS, ImageForm, class_noun
from fer_lightning.evaluation.hub import upload
from fer_lightning.evaluation.trained_model import TrainedModel, read_trained_model
from fer_lightning.imbalance.combinations import weights_by_hand
from fer_lightning.metrics import names
from fer_lightning.presentation.escapes import markdown_table, to_code, to_markdown
from fer_lightning.presentation.printable import printable
from fer_lightning.presentation.words import percent
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_bytes, replace_file

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("model_card.md")
WRITTEN_BY = "<!-- Written by python -m fer_lightning.card"
"""Marks a card that may be overwritten."""
MARKER = f"{WRITTEN_BY}, which overwrites this file. Delete this line to keep your edits. -->"
PICTURE = "confusion_matrix.png"
SETS = ("test", "test_dedup")
SCORES = {
    **{key: names.SCORES[key].heading for key in names.HEADLINES},
    "ece": "calibration error (15 bins)",
    "ece_calibrated": "calibration error, calibrated",
}
METRICS: tuple[tuple[str, str, str, dict[str, str] | None], ...] = (
    ("accuracy", "accuracy", "Accuracy", None),
    ("balanced_accuracy", "recall", "Balanced accuracy", {"average": "macro"}),
    ("f1_macro", "f1", "Macro F1", {"average": "macro"}),
)
"""Key in ``metrics.json``, and the Hub's type, name and arguments, of the metrics that the Hub ranks models by."""


def make_card(trained: TrainedModel, picture: str | None, repo_id: str | None = None) -> "ModelCard":
    """Fill in the template.

    Args:
        trained: the model.
        picture: path of the confusion matrix, relative to the card; None for no picture.
        repo_id: repository on the Hub that the model can be downloaded from.
    """
    from huggingface_hub import ModelCard

    from fer_lightning.evaluation.scorecard import scorecard_line

    metrics, config = trained.metrics, trained.config
    temperature = metrics.get("temperature")
    card: ModelCard = ModelCard.from_template(
        card_data=metadata(trained),
        template_path=str(TEMPLATE),
        marker=MARKER,
        synthetic=metrics.get("synthetic"),
        real=trained.real,
        title=to_markdown(_title(trained)),
        classes=[to_markdown(name) for name in metrics["train/class_counts"]],
        noun=trained.noun,
        about_faces=trained.about_faces,
        images=_form(metrics),
        architecture=_architectures(trained.members) if trained.members else _architecture(config["model"]),
        summary=to_markdown(scorecard_line(metrics)),
        results=_results(metrics),
        twins=_twins(metrics),
        temperature=None if temperature is None else f"{temperature:.3f}",
        calibration=_calibration(metrics),
        per_class=_per_class(metrics),
        picture=None if picture is None else quote(picture),
        protocol=_protocol(metrics, config),
        recipe=_recipe(metrics, config, len(trained.members)),
        repo_id=repo_id,
        licences=_licences(trained),
    )
    return card


def metadata(trained: TrainedModel) -> "ModelCardData":
    """The card's metadata block, which the Hub's search and leaderboards read."""
    from huggingface_hub import ModelCardData

    free = trained.metrics.get("synthetic") and trained.config["model"]["weights"] == "none"
    return ModelCardData(
        license="mit" if free else "other",
        license_name=None if free else "terms-of-fer-2013-and-imagenet" if trained.real else "terms-of-the-data",
        library_name="pytorch-lightning",
        pipeline_tag="image-classification",
        tags=[
            *(("facial-expression-recognition", "emotion-recognition") if trained.about_faces else ()),
            *("class-imbalance", "timm"),
            *(["fer2013"] if trained.real else []),
        ],
        datasets=["fer2013"] if trained.real else None,
        metrics=["accuracy", "recall", "f1"],
        model_name=_plain(_title(trained)),
        eval_results=_eval_results(trained),
    )


def _eval_results(trained: TrainedModel) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    metrics = trained.metrics
    names = {"test": "test images", "test_dedup": "test images without twins in training"}
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Facial expression recognition" if trained.about_faces else "Image classification",
            dataset_type="fer2013" if trained.real else "drawn-faces" if metrics.get("synthetic") else "other",
            dataset_name=f"{_plain(_data(trained))}, {names[name]}",
            dataset_config=name,
            dataset_split="test",
            metric_type=kind,
            metric_name=title,
            metric_value=round(metrics[f"{name}/{key}"], 4),
            metric_args=arguments,
        )
        for name in SETS
        for key, kind, title, arguments in METRICS
        if metrics.get(f"{name}/{key}") is not None
    ]


def _plain(text: str) -> str:
    """Text for the metadata block, which some readers show as they show markdown: without what begins markup."""
    return " ".join(re.sub(r"[^\w\s.,:+=%()-]", " ", text).split())


def _title(trained: TrainedModel) -> str:
    metrics = trained.metrics
    # On one line: in the metadata block a line of dashes would end it.
    return printable(f"{_data(trained)} {metrics['model']} {metrics['imbalance']}")


def _data(trained: TrainedModel) -> str:
    if trained.metrics.get("synthetic"):
        return "drawn (synthetic) faces"
    if not trained.real:
        return printable(trained.metrics.get("data_folder") or trained.metrics.get("data"))
    classes = tuple(trained.metrics["train/class_counts"])
    return "FER-2013" if set(classes) == set(EMOTIONS) else f"FER-2013 in {len(classes)} classes"


def _architecture(model: Mapping[str, Any]) -> str:
    hidden = to_markdown(", ".join(map(str, model["head"]["hidden"])) or "none")
    size = to_markdown(model["image_size"])
    return f"{to_code(model['name'])} of timm at {size} pixels, with a head of hidden width {hidden}"


def _architectures(members: Sequence[Mapping[str, Any]]) -> str:
    kinds = dict.fromkeys(map(_architecture, members))
    return f"Mean of the calibrated probabilities of {len(members)} networks: {'; '.join(kinds)}"


def _results(metrics: Mapping[str, Any]) -> str:
    sets = [name for name in SETS if metrics.get(f"{name}/n")]
    rows = [["", *(f"`{name}`" for name in sets)], ["images", *(f"{metrics[f'{name}/n']:,}" for name in sets)]]
    for key, title in SCORES.items():
        values = [metrics.get(f"{name}/{key}") for name in sets]
        if any(value is not None for value in values):
            rows.append([title, *map(percent, values)])
    return markdown_table(rows)


def _per_class(metrics: Mapping[str, Any]) -> str:
    columns = {
        "recall": "test/recall",
        "precision": "test/precision",
        "F1": "test/f1",
        "recall, dedup": "test_dedup/recall",
        "F1, dedup": "test_dedup/f1",
    }
    counts = metrics["train/class_counts"]
    rows = [[class_noun(list(counts)), "training images", *columns]]
    for name, count in counts.items():
        scores = (percent(metrics.get(f"{key}/{name}")) for key in columns.values())
        rows.append([to_markdown(name), f"{count:,}", *scores])
    return markdown_table(rows)


def _twins(metrics: Mapping[str, Any]) -> str:
    n, kept = metrics.get("test/n"), metrics.get("test_dedup/n")
    return "" if n is None or kept is None else f": {n - kept:,} of {n:,} have one here"


def _calibration(metrics: Mapping[str, Any]) -> str:
    before, after = metrics.get("test/ece"), metrics.get("test/ece_calibrated")
    if before is None or after is None:
        return ""
    return f"it changes the expected calibration error from {percent(before)} to {percent(after)}"


def _form(metrics: Mapping[str, Any]) -> str:
    """Size and colour of the training images; a file of unknown origin may hold anything there."""
    form = str(metrics.get("images"))
    return form if re.fullmatch(r"\d{1,4}x\d{1,4} (gray|colour)", form) else str(ImageForm())


def _protocol(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    split, drawn = config["split"], metrics.get("synthetic")
    name, cut = split["name"], split.get("val_fraction")
    random_share = f"a random {cut:.0%} of the training images" if cut else ""
    if name == "official" and not drawn and metrics.get("data") != "fer2013":
        text = "The parts of the data; those that they lack were cut from the training images."
        chosen = random_share
    elif name == "official":
        text = "The competition's split: trained on Training, tested on PrivateTest"
        text += " (drawn faces use the same names)." if drawn else " (all of `test/` where the data do not name it)."
        chosen = random_share if cut else "PublicTest"
    else:
        fold = to_markdown(f", fold {split['fold']} of {split['folds']}") if "folds" in split else ""
        seed = to_markdown(metrics["seed"])
        text = f"{to_code(f'split={name}')}{fold}: all images pooled and split at random with seed {seed}."
        chosen = random_share if cut else "the next fold" if name == "kfold" else ""
    if name == "paper" and not cut:
        text += " There are no validation images: the last epoch was kept."
    else:
        which = f" ({chosen})" if chosen else ""
        text += f" The epoch with the highest macro F1 on the validation images{which} was kept."
    images = sum(metrics["train/class_counts"].values())
    own = metrics["labels"] == "fer" and not drawn and metrics.get("data") != "fer2013"
    labels = "" if own else "; " + to_code(f"labels={metrics['labels']}")
    return f"{text} {images:,} training images, {metrics['test/n']:,} test images{labels}."


def _recipe(metrics: Mapping[str, Any], config: Mapping[str, Any], members: int) -> str:
    optim, trainer, model = config["optim"], config["trainer"], config["model"]
    started = {"none": "random", "imagenet": "ImageNet (timm's hub)"}
    weights = to_code(Path(str(model["weights"])).name)
    by_hand = weights_by_hand(config["imbalance"]["name"], flatten(config["imbalance"], "imbalance"))
    class_weights = ", ".join(f"{key.removeprefix('imbalance.loss.')}={value}" for key, value in by_hand.items())
    versions = metrics.get("versions", {})
    facts = {
        "members": f"{members}; learning rate and what follows are the first one's" if members else "",
        "method against imbalance": to_code(f"imbalance={metrics['imbalance']}"),
        "tau": _fact(metrics.get("tau")),
        "initial weights": started.get(model["weights"], f"file {weights}"),
        "optimizer": to_markdown(
            f"{optim['name']}, learning rate {optim['lr']:g}, weight decay {optim['weight_decay']:g}, "
            f"schedule {optim['schedule']}"
        ),
        "class weights by hand": to_code(class_weights) if class_weights else "",
        "epochs": to_markdown(f"{trainer['max_epochs']} at most, batches of {config['data']['batch_size']}"),
        "augmentation": to_code(f"augment={config['augment']['name']}"),
        "optimizer steps": _fact(metrics.get("train/steps")),
        "precision": _fact(metrics.get("precision")),
        "seed": _fact(metrics.get("seed")),
        "data hash": _fact(metrics.get("data_hash")),
        "code": f"commit {to_code(metrics['git_commit'][:12])}" if metrics.get("git_commit") else "",
        "versions": to_markdown(
            ", ".join(
                f"{name} {versions[name]}"
                for name in ("fer_lightning", "torch", "lightning", "timm")
                if name in versions
            )
        ),
    }
    return markdown_table([["training", ""], *([key, value] for key, value in facts.items() if value)])


def _fact(value: object) -> str:
    return "" if value is None else to_markdown(value)


def _licences(trained: TrainedModel) -> str:
    lines = ["- `fer_lightning` is under the MIT licence, which does not cover the weights of this model."]
    if trained.real:
        lines.append(
            "- FER-2013 (Goodfellow et al. 2013, ICML challenges in representation learning) consists of web images "
            "collected for research, under its own terms; third parties hold the rights to the photographs. Check "
            "whether your use is allowed."
        )
    if trained.config["model"]["weights"] != "none":
        lines.append(
            "- Training began from weights pretrained on other images (usually ImageNet), under their own terms."
        )
    return "\n".join(lines)


def write_card(card: str, path: Path, force: bool) -> None:
    """Write a card atomically.

    Raises:
        UserError: the file exists, was not written by this tool and ``force`` is not set; or it cannot be written.
    """
    try:
        if path.exists() and not force and WRITTEN_BY.encode() not in read_bytes(path):
            raise UserError(f"{path}: was not written by this tool, or edited since; give --out=FILE, or --force")
        replace_file(path, f"{card}\n".encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file with --out") from None


def write_model_card(path: Path, out: Path | None, force: bool, repo_id: str | None) -> None:
    """Write the card of a run, or print the card of a checkpoint; upload the run when asked to.

    Args:
        path: a run's folder, or a checkpoint.
        out: the card's file; None for ``README.md`` in the run's folder, or stdout for a checkpoint.
        force: overwrite a file that this tool did not write.
        repo_id: repository on the Hub to upload to; None for no upload.

    Raises:
        UserError: see ``read_trained_model``, ``write_card`` and ``hub.upload``.
    """
    if repo_id is not None and not path.is_dir():
        raise UserError(f"--push {repo_id}: needs the folder of a run, not a checkpoint")
    if repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise UserError(f"--push {repo_id}: must be USER/NAME, as in --push me/emotions")
    try:
        trained = read_trained_model(path)
        out = out or (None if trained.folder is None else trained.folder / "README.md")
        picture = None
        if trained.folder is not None and out is not None and (trained.folder / PICTURE).is_file():
            picture = Path(os.path.relpath(trained.folder / PICTURE, out.parent)).as_posix()
        card = str(make_card(trained, picture))
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:  # JSON and YAML, but other values
        raise UserError(
            f"{path}: its scores or settings are not those that a run writes ({type(error).__name__}); "
            "give the folder of a finished run, or its checkpoints/best.ckpt"
        ) from error
    if out is None:
        print(card)
    else:
        write_card(card, out, force)
        print(f"wrote {out}")
    if repo_id is not None and trained.folder is not None:
        card = str(make_card(trained, PICTURE, repo_id))
        print(f"pushed to {upload(trained.folder, card, PICTURE, repo_id)}")
