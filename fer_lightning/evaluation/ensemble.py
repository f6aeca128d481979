"""An ensemble of trained models as one checkpoint, with its own scores."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_lightning.evaluation import scorecard
from fer_lightning.evaluation.checkpoint_split import FOLDER, load_split
from fer_lightning.evaluation.probabilities import pick_device
from fer_lightning.evaluation.reference import to_card
from fer_lightning.evaluation.score import evaluate, headline, print_table
from fer_lightning.model.checkpoint import HYPER_PARAMETERS, MAX_MEMBERS, weights_digest, write_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import real_path
from fer_lightning.runtime.provenance import environment, git_commit
from fer_lightning.runtime.run_folder import read_status, tested_checkpoint

log = logging.getLogger(__name__)

OVERRIDES = ("data.path", "data.cache_dir", "labels.votes", "trainer.accelerator")
"""Settings that may be given: where the members' own data are, and where to compute."""


def write_ensemble(words: Sequence[str], out: Path) -> None:
    """Write the checkpoint of an ensemble, with its scores on the test set that its members share.

    Args:
        words: folders of finished runs, or their checkpoints; and ``key=value`` for the keys in ``OVERRIDES``.
        out: file to write.

    Raises:
        UserError: the models do not fit together, a file cannot be read or written, or the data are others.
    """
    overrides = [word for word in words if _is_override(word)]
    runs = [Path(word) for word in words if not _is_override(word)]
    _check_request(runs, overrides, out)
    checkpoints = [_checkpoint_of(run) for run in runs]
    members = [EmotionClassifier.load(path) for path in checkpoints]
    _check_alike(checkpoints, members)
    for path, member in zip(checkpoints, members, strict=True):
        if (member.hparams["scorecard"] or {}).get("temperature") is None:
            log.info("%s: has no temperature; its probabilities are averaged as they are", path)
    model = join(members)
    cfg, faces, split = load_split(model, overrides)
    if faces.data_hash != model.hparams["provenance"]["data_hash"]:
        raise UserError("the data are not those that the members were trained with; give theirs with data.path=")
    evaluation = evaluate(model, faces, split, pick_device(cfg.trainer.accelerator))
    metrics = {
        **evaluation.metrics,
        "train/class_counts": dict(zip(model.classes, model.hparams["class_counts"], strict=True)),
        **{key: cfg[key].name for key in ("data", "split", "labels", "imbalance", "model")},
        **({"data_folder": Path(cfg.data.path).name} if cfg.data.name == FOLDER else {}),
        "synthetic": faces.synthetic,
        "seed": cfg.seed,
        "data_hash": faces.data_hash,
        "git_commit": git_commit(),
    }
    print_table(metrics, model.classes)
    reference = to_card(evaluation.reference, model.classes)
    hyper = {**model.hparams, "scorecard": {**scorecard.make_scorecard(metrics), **reference}}
    _write(out, {"state_dict": model.state_dict(), "hyper_parameters": hyper})
    print(json.dumps({"checkpoint": str(out), "members": len(members), **headline(evaluation.metrics)}))


def join(members: Sequence[EmotionClassifier]) -> EmotionClassifier:
    """The ensemble of models of the same classes and images; its own hyper-parameters are the first one's.

    Args:
        members: loaded models, each calibrated by the temperature of its scorecard.
    """
    hypers: list[dict[str, Any]] = [
        {key: member.hparams[key] for key in HYPER_PARAMETERS - {"members"}} for member in members
    ]
    first = hypers[0]
    provenance = {
        "data_hash": first["provenance"]["data_hash"],
        "git_commit": git_commit(),
        "versions": environment(),
    }
    own: dict[str, Any] = {**first, "provenance": provenance, "scorecard": None, "adjusted": None}
    model = EmotionClassifier(**own, members=hypers)
    for copy, member in zip(model.members, members, strict=True):
        copy.load_state_dict(member.state_dict())
    return model.eval()


def _is_override(word: str) -> bool:
    """Whether a word is ``key=value``, and not a path with an equals sign, as Hydra writes them into folders' names."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key and not Path(word).exists()


def _check_request(runs: Sequence[Path], overrides: Sequence[str], out: Path) -> None:
    if not 2 <= len(runs) <= MAX_MEMBERS:
        given = f"{len(runs)} run{'s' * (len(runs) != 1)} given"
        raise UserError(f"{given}: an ensemble has 2 to {MAX_MEMBERS}; give their folders")
    resolved = [real_path(run) for run in runs]
    if twice := [run for run, path in zip(runs, resolved, strict=True) if resolved.count(path) > 1]:
        raise UserError(f"{twice[0]}: is given twice; give each run once")
    for override in overrides:
        if override.partition("=")[0] not in OVERRIDES:
            raise UserError(f"{override}: an ensemble is scored on its members' own split; {_accepted()}")
    if out.suffix != ".ckpt":
        raise UserError(f"--out {out}: must be a file whose name ends in .ckpt")
    if out.exists():
        raise UserError(f"--out {out}: exists and is not overwritten; choose another name, or delete it")


def _accepted() -> str:
    return f"accepted: {', '.join(OVERRIDES)}"


def _checkpoint_of(run: Path) -> Path:
    """The tested checkpoint of a run's folder; a file as it is."""
    if not run.is_dir():
        return run
    status = read_status(run)["status"]
    if status != "done":
        raise UserError(f"{run}: this run is {status}; give the folders of finished runs, or checkpoints")
    return tested_checkpoint(run)


def _check_alike(paths: Sequence[Path], members: Sequence[EmotionClassifier]) -> None:
    """Refuse members with other classes or images, or that were trained on other data or another split."""
    first = _protocol(members[0])
    known: dict[str, Path] = {}
    for path, member in zip(paths, members, strict=True):
        if (other := known.setdefault(weights_digest(member.state_dict()), path)) != path:
            raise UserError(f"{path}: has the same weights as {other}; give each model once")
        if member.members:
            raise UserError(f"{path}: is an ensemble; give its members instead")
        for what, value in _protocol(member).items():
            if value != first[what]:
                raise UserError(
                    f"{path}: its {what} differ from those of {paths[0]} ({value}; {first[what]}); give models that "
                    "share classes, images, data and split"
                )


def _protocol(model: EmotionClassifier) -> dict[str, str]:
    config = model.hparams["config"]
    split = config.get("split")
    parts = split.items() if isinstance(split, dict) else ()
    return {
        "classes": ", ".join(model.classes),
        "images": str(model.form),
        "data": str(model.hparams["provenance"]["data_hash"])[:12],
        "settings of the split": ", ".join(f"{key}={value}" for key, value in parts if not str(key).startswith("_")),
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, content)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); choose another file") from error
