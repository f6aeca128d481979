"""The dashboards of a run, Weights & Biases or TensorBoard, as asked.

A dashboard is a copy: whatever happens to it, the run folder is complete, and the run only warns. Only the first
process of a distributed run has any.
"""

import logging
import netrc
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from fer_lightning.config import is_first_process
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.errors import UserError
from fer_lightning.metrics import PROBABILITY_COLUMNS, confident_mistakes
from fer_lightning.provenance import environment, git_commit

if TYPE_CHECKING:
    from fer_lightning.compare import Comparison

log = logging.getLogger(__name__)

FIGURES = ("confusion_matrix", "class_distribution", "curves", "mistakes")
"""Pictures of the run folder that the dashboards show, where they exist."""

WANDB_START_SECONDS = 30
"""How long to wait for the W&B server before a run is kept offline."""

WANDB_FINISH_SECONDS = 15
"""How long to wait at the end of a run until W&B has it all: well within the 30 s that a stopped run has."""


def build_loggers(cfg: Mapping[str, Any], run_dir: Path) -> list[Logger]:
    """Open the dashboards of a run.

    Args:
        cfg: the whole configuration, plain Python, interpolations resolved. A run that ``cfg["resume"]`` goes on
            within its own folder goes on in the same W&B run too.
        run_dir: the run folder.

    Returns:
        The logger that ``cfg["logger"]["name"]`` asks for: ``wandb`` (offline without a key), ``tensorboard``, or
        ``auto`` for W&B where the user is logged in; none for ``csv``, and in further processes of a run.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """
    if not is_first_process():
        return []
    kind = cfg["logger"]["name"]
    if kind == "wandb" or (kind == "auto" and _wandb_login()):
        return [_wandb_logger(cfg, run_dir)]
    if kind == "tensorboard":
        try:
            return [TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard")]
        except ModuleNotFoundError:
            raise UserError(
                "logger=tensorboard: TensorBoard is not installed; "
                "pip install 'fer_lightning[tensorboard]', or use logger=csv"
            ) from None
    return []


def _wandb_login() -> bool:
    """Whether W&B finds a key without asking: in the environment, or in the netrc file that ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    for file in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        try:
            if netrc.netrc(os.path.expanduser(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _wandb_mode() -> str:
    """The mode for ``wandb.init``: the user's ``WANDB_MODE``, but never online without a key, which would ask."""
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode == "dryrun" or (mode not in ("offline", "disabled") and not _wandb_login()):
        return "offline"
    return mode


def _earlier_wandb_id(resume: str | None, run_dir: Path) -> str | None:
    """The id of the W&B run that earlier parts of this run left in its folder, if it goes on there."""
    if resume is None or (resume != "auto" and not Path(resume).resolve().is_relative_to(run_dir.resolve())):
        return None
    parts = sorted(run_dir.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return parts[-1].stem.removeprefix("run-") if parts else None


class _RowPerStep(WandbLogger):
    """Counts W&B's rows by optimizer step.

    So the rows of a resumed run follow those of its earlier parts, and what these have logged is not logged again.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        run = self.experiment
        if step is None or step >= run.starting_step:
            with _only_a_warning("this epoch's numbers are missing there"):
                run.log({**metrics, "trainer/global_step": step}, step=step)


def _wandb_logger(cfg: Mapping[str, Any], run_dir: Path) -> WandbLogger:

    names = [cfg[group]["name"] for group in ("imbalance", "model", "split", "data")]
    tags = list(dict.fromkeys(str(tag)[:64] for tag in (*names, *cfg["tags"]) if str(tag)))
    mode = _wandb_mode()
    earlier = _earlier_wandb_id(cfg["resume"], run_dir)
    # Chosen here, so that the attempt to start online and the offline run that follows it have the same.
    run_id = earlier or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)

    run = _start_wandb(
        mode,
        project=cfg["logger"]["project"],
        entity=cfg["logger"]["entity"],
        group=os.environ.get("WANDB_RUN_GROUP"),
        name=f"{cfg['imbalance']['name']}-{cfg['model']['name']}-seed{cfg['seed']}",
        tags=tags,
        config={**cfg, "git_commit": git_commit(), "environment": environment()},
        dir=run_dir,
        id=run_id,
        resume="allow" if earlier and mode != "offline" else None,
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if run.offline:
        # Only this part: in a sync of them all, one that was killed before W&B wrote anything stops the others.
        log.info("W&B runs offline; upload later with: %s", _upload_command(run))
    return _RowPerStep(experiment=run, project=cfg["logger"]["project"], save_dir=run_dir)


def _start_wandb(mode: str, **arguments: Any) -> Any:
    """Start a W&B run; offline where the server cannot be reached or refuses."""
    import wandb

    def start(mode: Any) -> Any:
        return wandb.init(
            **arguments,
            mode=mode,
            reinit="finish_previous",
            settings=wandb.Settings(
                init_timeout=WANDB_START_SECONDS,
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", WANDB_FINISH_SECONDS)),
                finish_timeout_raises=True,
            ),
        )

    # Started here rather than by Lightning, whose offline=True would leave WANDB_MODE set for every later run of
    # this process, and so that a dead network or a wrong key shows now and not in the middle of training.
    try:
        return start(mode)
    except wandb.Error as error:
        log.warning("W&B is not available (%s); the run is kept offline", _first_line(error))
        wandb.teardown()  # it has the id in use
        return start("offline")


def _upload_command(run: Any) -> str:
    option = "" if run.offline else "--include-online "
    return f"wandb sync {option}{shlex.quote(str(Path(run.dir).parent))}"


@contextmanager
def _only_a_warning(consequence: str) -> Iterator[None]:
    """Go on when W&B fails.

    Its errors come as ``wandb.Error``, as OSError (its service process is gone, its disk is full, it timed out), and
    as those of its service's mailbox and messages. Anything else is a bug, here or there, and not hidden.
    """
    import wandb
    from google.protobuf.message import Error as MessageError  # type: ignore[import-untyped]
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    of_the_service = (WandbApiFailedError, HandleAbandonedError, MailboxClosedError, ServerResponseError, MessageError)
    try:
        yield
    except (wandb.Error, OSError, *of_the_service) as error:
        log.warning("W&B failed (%s); %s", _first_line(error), consequence)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def log_results(
    loggers: Sequence[Logger],
    metrics: Mapping[str, Any],
    predictions: pd.DataFrame,
    images: np.ndarray,
    run_dir: Path,
    name: str = "test",
) -> None:
    """Show a finished run on the dashboards.

    W&B gets ``metrics.json`` as summary, the run folder's pictures, a table with one row per class, and a table
    of the most confident mistakes with their faces. TensorBoard gets the pictures.

    Args:
        loggers: from ``build_loggers``. One that fails is warned about.
        metrics: the content of ``metrics.json``.
        predictions: the rows of ``predictions.csv`` of the reported set.
        images: uint8, (n, 48, 48), one per row.
        run_dir: the run folder with its pictures already written.
        name: the reported set.
    """
    pictures = [name for name in FIGURES if (run_dir / f"{name}.png").exists()]
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name in pictures:
                with Image.open(run_dir / f"{name}.png") as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                logger.experiment.add_image(name, pixels, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            with _only_a_warning("tables or results are missing there"), _files_kept_in(run_dir / "wandb"):
                facts = {"class_counts": metrics["train/class_counts"], "data_hash": metrics["data_hash"]}
                run.config.update(facts, allow_val_change=True)
                run.summary.update(dict(metrics))
                run.log({name: wandb.Image(str(run_dir / f"{name}.png")) for name in pictures}, commit=False)
                # Last, because tables alone need the server.
                mistakes = _mistake_table(predictions, images)
                per_class = wandb.Table(dataframe=_class_table(metrics, predictions, name))
                run.log({"per_class": per_class, "confident_mistakes": mistakes})


@contextmanager
def _files_kept_in(folder: Path) -> Iterator[None]:
    """Stage the pictures of tables in the run folder, so that it can be synced later.

    W&B would put them into the user's home, which on a compute node may be read-only or gone.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _class_table(metrics: Mapping[str, Any], predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    images = predictions["label"].value_counts()
    return pd.DataFrame(
        {
            "emotion": list(EMOTIONS),
            "training images": [metrics["train/class_counts"][emotion] for emotion in EMOTIONS],
            f"{name} images": [int(images.get(emotion, 0)) for emotion in EMOTIONS],
            **{
                score: [metrics[f"{name}/{score}/{emotion}"] for emotion in EMOTIONS]
                for score in ("recall", "precision", "f1")
            },
        }
    )


def _mistake_table(predictions: pd.DataFrame, images: np.ndarray) -> Any:
    import wandb

    rows = confident_mistakes(predictions)
    columns = ["id", "label", "prediction", "confidence", *PROBABILITY_COLUMNS]
    # Three times the size: 48 pixels are hard to see in a table.
    faces = [wandb.Image(images[place].repeat(3, axis=0).repeat(3, axis=1)) for place in rows.index]
    data: list[Any] = [[face, *values] for face, values in zip(faces, rows[columns].to_numpy().tolist(), strict=True)]
    return wandb.Table(columns=["face", *columns], data=data)


def log_report(comparison: "Comparison", out: Path, project: str, entity: str | None = None) -> None:
    """Log a comparison as one W&B run of type ``report``: its tables, pictures, page and sentences.

    Args:
        comparison: the comparison.
        out: the report folder, already written; an offline run is kept in it.
        project: W&B project; must exist or be one's own to make.
        entity: user or team; None is the default of the account.
    """
    import wandb

    with _only_a_warning(f"the report is complete in {out} all the same"), _files_kept_in(out / "wandb"):
        run = _start_wandb(
            _wandb_mode(),
            project=project,
            entity=entity,
            group=os.environ.get("WANDB_RUN_GROUP"),
            job_type="report",
            name=f"report-{out.absolute().parent.name}",
            tags=[
                "report",
                *dict.fromkeys(run.metrics["imbalance"] for runs in comparison.rows.values() for run in runs),
            ],
            config=comparison.protocol,
            dir=out,
        )
        try:
            frames = {
                "summary": comparison.summary,
                "differences": comparison.differences,
                "mcnemar": comparison.mcnemar,
                "ranks": comparison.ranks,
                "per_class": comparison.per_class,
                "calibration": comparison.calibration,
                "cost": comparison.cost,
                "ceiling": comparison.ceiling,
                "paper": comparison.paper,
                "findings": pd.DataFrame({"sentence": [*comparison.sentences, *comparison.notes]}),
            }
            means = comparison.summary[comparison.summary["test_set"] == comparison.test_set]
            run.summary.update({f"{row['metric']}/{row['method']}": row["mean"] for row in means.to_dict("records")})
            run.log({path.stem: wandb.Image(str(path)) for path in sorted(out.glob("*.png"))}, commit=False)
            run.log({"page": wandb.Html(str(out / "report.html"))}, commit=False)
            # Last, because tables alone need the server.
            run.log({name: wandb.Table(dataframe=frame) for name, frame in frames.items() if frame is not None})
        finally:
            if run.offline:
                log.info("W&B runs offline; upload later with: %s", _upload_command(run))
            run.finish()
            wandb.teardown()  # an offline run's finish() returns before its file is complete


def finish(loggers: Sequence[Logger], failed: bool) -> None:
    """Close the run on every dashboard, as failed when it failed; all is written on return. Safe to call twice.

    Takes at most ``WANDB_FINISH_SECONDS`` (or as long as the environment variable ``WANDB_FINISH_TIMEOUT`` says) and
    a few more.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            run = logger.experiment
            with _only_a_warning(f"the run is kept on disk; upload it with: {_upload_command(run)}"):
                try:
                    run.finish(exit_code=int(failed))
                finally:
                    wandb.teardown()  # an offline run's finish() returns before its file is complete
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
