"""Opening an MLflow run so that an outage is a warning."""

import logging
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fer_lightning.runtime.errors import UserError, first_line, without_login
from fer_lightning.runtime.files import real_path

log = logging.getLogger(__name__)

RUN_ID_FILE = "mlflow_run_id.txt"
"""In the run folder: the run that a resumed run continues."""

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Settings of MLflow, where the environment has none.

Together a request takes little more than 20 s, within the 30 s that a stopped run has; MLflow's own are 7 and 120.
Nothing is sent to anybody but the chosen server, and nothing printed among the results.
"""

MAX_PARAMS, MAX_KEY, MAX_VALUE = 100, 250, 6000
"""MLflow's limits: parameters or tags in a request, characters of a key, and of a value."""


@dataclass(frozen=True)
class OpenRun:
    """A run that is written to.

    Attributes:
        client: an ``MlflowClient``.
        uri: of its server or database.
        run_id: of the run.
        last_step: of the metrics that an earlier part of the run logged; -1 where there are none.
    """

    client: Any
    uri: str
    run_id: str
    last_step: int = -1


def tracking_uri() -> str:
    """The server or database of the environment, or MLflow's own default: ``mlflow.db`` in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database(Path("mlflow.db"))


def database(file: Path) -> str:
    """The address of an SQLite file."""
    return f"sqlite:///{file.absolute()}"


def key(text: str) -> str:
    """The name of a parameter, tag or metric as MLflow accepts it."""
    return posixpath.normpath(re.sub(r"[^\w./: -]", "_", text)).lstrip("./")[:MAX_KEY] or "_"


def start(
    experiment: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any], folder: Path, earlier: str | None
) -> OpenRun | None:
    """Open a run on the server of the environment; where that fails, in ``mlflow.db`` in ``folder``.

    Args:
        experiment: name, made where it is missing.
        name: of the run.
        tags: of the run.
        params: of the run.
        folder: the run folder.
        earlier: id of the run to continue, if the server has it.

    Returns:
        The run, or None where neither works, which is reported as a warning.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
        UserError: a variable of the environment has a value that MLflow does not accept.
    """
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    _check_environment()
    folder.mkdir(parents=True, exist_ok=True)
    own, here = folder / "mlflow.db", None if os.environ.get("MLFLOW_TRACKING_URI") else Path.cwd()
    with only_warn(f"the run is logged to {own}"):
        return _open(tracking_uri(), experiment, name, tags, params, earlier, here, None)
    with only_warn("the run is not logged there"):
        artifacts = (folder / "mlflow_artifacts").absolute().as_uri()
        return _open(database(own), experiment, name, tags, params, earlier, folder, artifacts)
    return None


def _check_environment() -> None:
    try:
        from mlflow import environment_variables  # itself reads some of them

        for variable in vars(environment_variables).values():
            if isinstance(variable, environment_variables._EnvironmentVariable):
                variable.get()
    except ValueError as error:
        raise UserError(f"logger=mlflow: {first_line(error)}; correct that variable or unset it") from None


def _open(
    uri: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    earlier: str | None,
    inside: Path | None,
    artifacts: str | None,
) -> OpenRun:
    from mlflow import MlflowClient
    from mlflow.tracking.context.registry import resolve_tags

    if inside is not None and (inside / "mlflow.db").is_symlink():
        raise OSError(f"{inside / 'mlflow.db'} is a link; remove it, or name its target in MLFLOW_TRACKING_URI")
    client = MlflowClient(uri)
    run = None if earlier is None else _find(client, earlier)
    if run is not None:
        _check_artifacts(run, inside)
    texts = {key(name): str(value)[:MAX_VALUE] for name, value in params.items()}
    if run is None:
        resolved = resolve_tags({key(name): text for name, text in tags.items()})
        # MLflow adds the address of git's remote, which may hold a token.
        shown = {name: without_login(text) for name, text in resolved.items()}
        run = client.create_run(_experiment(client, experiment, artifacts), run_name=name, tags=shown)
        _check_artifacts(run, inside)
        log.info("MLflow: run %s in %s", run.info.run_id, without_login(uri))
        _log(client, run.info.run_id, params=texts)
        return OpenRun(client, uri, run.info.run_id)
    run_id = run.info.run_id
    log.info("MLflow: run %s continues in %s", run_id, without_login(uri))
    client.update_run(run_id, status="RUNNING")
    # Parameters cannot be changed; what the resumed part changes is a tag.
    known = run.data.params
    changed = {key(f"resumed.{name}"): text for name, text in texts.items() if known.get(name, text) != text}
    _log(client, run_id, {name: text for name, text in texts.items() if name not in known}, changed)
    steps = [metric.step for metric in client.get_metric_history(run_id, "epoch")]  # Lightning logs it with every row
    return OpenRun(client, uri, run_id, max(steps, default=-1))


def _check_artifacts(run: Any, inside: Path | None) -> None:
    """Refuse to copy pictures to where a database says that anybody may have put there.

    Args:
        run: of that database.
        inside: the folder that its files must be in; None where the user has named the database or server.

    Raises:
        OSError: they would go elsewhere.
    """
    place = urlsplit(run.info.artifact_uri)
    is_local = place.scheme in ("", "file") and not place.netloc
    if inside is not None and not (is_local and real_path(unquote(place.path)).is_relative_to(real_path(inside))):
        raise OSError(
            f"mlflow.db would copy files to {run.info.artifact_uri}; name it in MLFLOW_TRACKING_URI to permit that"
        )


def _find(client: Any, run_id: str) -> Any:
    """The run of this id; None where the server has none, or where it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    """Id of the experiment, made where it is missing."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:  # another run of the sweep has just made it
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id


def _log(client: Any, run_id: str, params: Mapping[str, str], tags: Mapping[str, str] | None = None) -> None:
    from mlflow.entities import Param, RunTag

    items = [Param(name, text) for name, text in params.items()]
    for start in range(0, len(items), MAX_PARAMS):
        client.log_batch(run_id, params=items[start : start + MAX_PARAMS])
    changed = [RunTag(name, text) for name, text in (tags or {}).items()]
    for start in range(0, len(changed), MAX_PARAMS):
        client.log_batch(run_id, tags=changed[start : start + MAX_PARAMS])


def log_table(run: OpenRun, name: str, table: Any) -> None:
    """Log a data frame, whose cells may be PIL images, as ``<name>.json``, or ``<name>-2.json`` where there is one.

    MLflow would add the rows to those of an earlier part of the run.
    """
    taken = {file.path for file in run.client.list_artifacts(run.run_id)}
    number, file = 1, f"{name}.json"
    while file in taken:
        number += 1
        file = f"{name}-{number}.json"
    run.client.log_table(run.run_id, table, file)


@contextmanager
def only_warn(consequence: str) -> Iterator[None]:
    """Report a failure of MLflow as a warning.

    Its errors are ``MlflowException``, OSError (among them those of requests) and SQLAlchemy's. Anything else is a bug
    and is raised.
    """
    from mlflow.exceptions import MlflowException

    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError:  # mlflow-skinny alone, which is enough to log to a server
        SQLAlchemyError = MlflowException
    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError) as error:
        log.warning("MLflow failed (%s); %s", without_login(first_line(error)), without_login(consequence))
