"""Scores of a stored checkpoint, on its own test sets or on other images."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_lightning.data.faces import Faces
from fer_lightning.evaluation import scorecard
from fer_lightning.evaluation.artifacts import write_figures, write_tables
from fer_lightning.evaluation.checkpoint_split import load_split, what_was_scored
from fer_lightning.evaluation.prior_options import PriorOptions, PriorRequest
from fer_lightning.evaluation.prior_scores import add_prior_scores, find_reference
from fer_lightning.evaluation.probabilities import pick_device
from fer_lightning.evaluation.reference import stored_calibration, to_card
from fer_lightning.evaluation.robustness import Robustness, print_robustness, score_corruptions, subset
from fer_lightning.evaluation.robustness_figure import robustness_figure
from fer_lightning.evaluation.score import Evaluation, evaluate, headline, print_table
from fer_lightning.evaluation.tta import VIEWS
from fer_lightning.model.checkpoint import StoredModel
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation import words
from fer_lightning.presentation.escapes import table_to_csv
from fer_lightning.presentation.plotting import write_figure
from fer_lightning.runtime.errors import UserError, require
from fer_lightning.runtime.files import check_no_links

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationRequest(PriorRequest):
    """The options of the ``evaluate`` command; without a level the sets are those at ``conformal.LEVEL``.

    Attributes:
        checkpoint: a run's ``best.ckpt``.
        overrides: ``key=value`` of the run's configuration; ``data=folder`` scores any labelled folder of images.
        tta: test-time augmentations, each scored beside the plain images; names in ``tta.VIEWS``, comma-separated.
        out: folder for metrics, predictions and pictures; None writes nothing.
        store: write temperature and validation scores into the checkpoint, for one without them.
        corruptions: score corrupted test images, too.
        limit: number of test images that are corrupted, at random; None for all.
    """

    checkpoint: Path
    overrides: list[str]
    tta: str = ""
    out: Path | None = None
    store: bool = False
    corruptions: bool = False
    limit: int | None = None

    @property
    def augmentations(self) -> list[str]:
        """The names in ``tta``, each once."""
        return list(dict.fromkeys(name for name in self.tta.split(",") if name))


def rescore(request: EvaluationRequest) -> None:
    """Score a checkpoint, print the table and one line of JSON, and write what was asked for.

    The JSON holds the size and the main scores of the test set, and the mean drop of accuracy on corrupted images.

    Raises:
        UserError: for a checkpoint, an override, an augmentation or a folder that cannot be used; also when test
            images trained or selected the model.
    """
    checkpoint, out, options = request.checkpoint, request.out, request.prior_options
    _check(request)
    model = EmotionClassifier.load(checkpoint)
    cfg, faces, split = load_split(model, request.overrides)
    temperature, reference = stored_calibration(model)
    if options != PriorOptions() and not len(split.val):
        find_reference(model, checkpoint, options)  # which cannot be fitted here
    device = pick_device(cfg.trainer.accelerator)
    shared = shared_classes(model, faces)
    evaluation = evaluate(model, faces, split, device, temperature, request.augmentations, shared, reference)
    evaluation, line = add_prior_scores(evaluation, options, model)
    _print(evaluation, faces, line)
    if request.store:
        _store(checkpoint, model, faces, evaluation)
    robustness = None
    if request.corruptions:
        chosen = subset(faces, split.tests["test"], request.limit)
        robustness = score_corruptions(model, faces, chosen, device)
        print_robustness(robustness)
    summary = robustness.summary if robustness else {}
    if out is not None:
        metrics = {**evaluation.metrics, **summary, **what_was_scored(checkpoint, cfg, faces, split)}
        counts = {"test": faces.count(split.tests["test"])}
        write_tables(out, metrics, evaluation)
        write_figures(out, metrics, evaluation, faces, split, counts, "Confusion matrix")
        if robustness is not None:
            _write_robustness(out, robustness, faces, words.caption(metrics))
    drop = {key: summary[key] for key in ("corruptions/images", "corruptions/accuracy_drop") if key in summary}
    print(json.dumps({"checkpoint": str(checkpoint), **headline(evaluation.metrics), **drop}))


def _check(request: EvaluationRequest) -> None:
    """Check what can be checked before the model is loaded."""
    if request.out is not None:
        _refuse_run_folder(request.out)
    for name in request.augmentations:
        require(name in VIEWS, "--tta", name, f"must be {' or '.join(VIEWS)}, or both: {','.join(VIEWS)}")
    limit, corrupts = request.limit, request.corruptions
    require(limit is None or corrupts, "--limit", limit, "is the number of images that --corruptions uses; add it")
    require(limit is None or limit >= 1, "--limit", limit, "must be 1 or more")
    request.prior_options.check()
    _check_storable(request.overrides if request.store else ())


def _print(evaluation: Evaluation, faces: Faces, line: str) -> None:
    """Print the tables, and the line about the prior where there is one."""
    if evaluation.shared:
        log.info(
            "test: an answer outside the shared classes is a mistake; test_shared: the most probable of the shared "
            "classes is the answer"
        )
    print_table({**evaluation.metrics, "synthetic": faces.synthetic}, faces.classes)
    if line:
        print(line)


def _write_robustness(folder: Path, robustness: Robustness, faces: Faces, subtitle: str) -> None:
    (folder / "corruptions.csv").write_text(table_to_csv(robustness.table), encoding="utf-8")
    drop = words.points(robustness.summary["corruptions/accuracy_drop"])
    title = f"Corrupted test images: accuracy drops by {drop} on average"
    write_figure(robustness_figure(robustness, faces.images, title, subtitle), folder / "corruptions.png")
    log.info("wrote corruptions.csv and corruptions.png to %s", folder)


def shared_classes(model: EmotionClassifier, faces: Faces) -> tuple[str, ...]:
    """The model's classes that have images; empty where all have."""
    shared = tuple(name for name, count in zip(model.classes, faces.count(), strict=True) if count)
    return shared if len(shared) < len(model.classes) else ()


OWN_DATA = ("data.path", "data.cache_dir", "trainer.accelerator")
"""Settings with which the validation images are still those that the model was selected on."""


def _check_storable(overrides: Sequence[str]) -> None:
    for override in overrides:
        require(override.partition("=")[0] in OWN_DATA, "--store", override, "leave it out: it may change the images")


def _store(checkpoint: Path, model: EmotionClassifier, faces: Faces, evaluation: Evaluation) -> None:
    """Write temperature and reference into the checkpoint's scorecard.

    Raises:
        UserError: they are not those of the images that the model was selected on.
    """
    if faces.data_hash != model.hparams["provenance"]["data_hash"] or evaluation.reference is None:
        raise UserError("--store: needs the validation images that the model was selected on; give its own data.path")
    temperature = evaluation.metrics["temperature"]
    card = {**(model.hparams["scorecard"] or {}), "temperature": temperature}
    scorecard.store(StoredModel.read(checkpoint), {**card, **to_card(evaluation.reference, model.classes)})
    log.info("stored temperature and validation scores in %s", checkpoint)


def _refuse_run_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={folder}: is a file; give a folder")
    if (folder / "status.json").exists():
        raise UserError(f"--out={folder}: holds a run, whose own scores would be overwritten; give another folder")
    if folder.exists():
        check_no_links(folder, deep=False)
