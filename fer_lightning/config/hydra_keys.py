"""What may be set of Hydra's own configuration: by a file almost nothing, by the command line most of it.

Hydra starts programs, makes folders, opens log files and calls callbacks as ``hydra.*`` says. A file may come from
anyone, so it may set help texts and plain options of launchers and sweepers alone; the user types the rest.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.default_element import GroupDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.interpolations import check_interpolation
from fer_lightning.config.secrets import without_secrets
from fer_lightning.runtime.errors import UserError, require
from fer_lightning.runtime.imports import TRUST, trusted

LAUNCHER_WORDS = ("partition", "account", "qos", "constraint", "gres", "exclude", "comment", "name")
"""Options of the scheduler; other texts, such as ``setup``, are copied into its shell script."""

CALLBACKS: Mapping[str, Any] = {
    "validate": {"_target_": "fer_lightning.config.hook.Validate"},
    "summary": {"_target_": "fer_lightning.sweeps.hook.SweepLifecycle"},
}
"""The callbacks that every run has; the user may set ``summary.anyway``."""

LOGGING_WORDS = ("level", "format", "datefmt", "handlers", "formatter")
LOGGING_VALUES = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "ext://sys.stdout",
    "ext://sys.stderr",
    "${hydra.runtime.output_dir}/${hydra.job.name}.log",
    "hydra-${hydra.job.name}.log",
    "w",
)
"""Values of Hydra's own files and the project's: other handlers run code, other files could be a ``.bashrc``."""

RECORD = ".hydra"
"""``hydra.output_subdir``: the folder of a run folder where its configuration is read."""

CHOSEN = ("hydra/help", "hydra/job_logging", "hydra/hydra_logging")
"""Groups that the main file chooses: Hydra ignores another choice in a file that it loads."""

_OPTIONS = ("-m", "--multirun", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
"""Options of the command line that ``sweep.json`` may hold; of these, those after the second have a value."""

_WHY = "changes what programs do or where files are written, so no file may set it; type it on the command line"

_PLACES = r"\$\$|\$(CONFIG|APP_CONFIG_GROUPS|FLAGS_HELP|HYDRA_CONFIG_GROUPS)\b|\$\{hydra\.help\.(header|footer)\}"
"""What a help text may contain that Hydra replaces."""

_RECORDED = "is only taken from your own command line; type the sweep's again, with hydra.sweep.dir=FOLDER"


def check_file(config: Any, name: str) -> None:
    """Check what a file that is not this project's sets below ``hydra``.

    Args:
        config: its content, below the keys where it is placed.
        name: of the file below its folder.

    Raises:
        UserError: naming the first key that a file may not set.
    """
    if not isinstance(config, DictConfig) or "hydra" not in config:
        return
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for parts, value in leaves({"hydra": plain["hydra"]}, containers=True):
        if not trusted(".".join(parts)) and value != {} and not _free(parts, value):
            raise refusal(parts, value, f"{_WHY} (in {name})")


def check_defaults(defaults: Sequence[Any], name: str) -> None:
    """Check that a file does not choose what the main file has chosen already: Hydra silently ignores that.

    Args:
        defaults: Hydra's entries of the file's defaults list.
        name: of the file below its folder.

    Raises:
        UserError: naming the group.
    """
    for default in defaults:
        if isinstance(default, GroupDefault) and default.override and (default.group or "").lstrip("/") in CHOSEN:
            group = str(default.group).lstrip("/")
            raise UserError(
                f"override /{group}: has no effect in {name}, because the main file chooses it; "
                f"type {group}={default.value} on the command line"
            )


def check_placement(config: Any, path: str, package: str | None) -> None:
    """Check that a file of this project is placed below ``hydra`` only where it belongs.

    Raises:
        UserError: naming the file.
    """
    if not isinstance(config, DictConfig) or "hydra" not in config:
        return
    group = path.rpartition("/")[0].replace("/", ".")
    own = {"config": ("", "_global_", None), "hydra/config": ("hydra",)}
    expected = own.get(path, ("hydra",) if group == "hydra.output" else (group,))
    if not (path in own or group.startswith("hydra.")) or package not in expected:
        raise UserError(f"{path}@{package}: may not be placed below hydra; leave its package out")


def check_choices(choices: Mapping[str, Any], overrides: Sequence[Override], defaults: Mapping[str, Any]) -> None:
    """Check that no file chose a launcher, a sweeper, or another group of Hydra's.

    Args:
        choices: Hydra's ``hydra.runtime.choices``.
        overrides: what the user typed.
        defaults: the choices of this project's own files, and other acceptable ones.

    Raises:
        UserError: naming the group.
    """
    typed = {override.key_or_group for override in overrides}
    for group, choice in choices.items():
        name = str(group).partition("@")[0]
        key = name.replace("/", ".")
        is_free = not name.startswith("hydra/") or name in ("hydra/help", "hydra/hydra_help") or trusted(key)
        if not is_free and typed.isdisjoint((name, name.rpartition("/")[0])) and choice not in defaults.get(name, ()):
            raise refusal((key,), choice, _WHY)


def check_callbacks(hydra: DictConfig) -> None:
    """Check that the callbacks that validate and that run a sweep are there, unchanged.

    Raises:
        UserError: naming the one that is not.
    """
    callbacks: Any = OmegaConf.to_container(hydra, resolve=False)
    callbacks = callbacks.get("callbacks") if isinstance(callbacks, dict) else None
    for name, node in CALLBACKS.items():
        given = callbacks.get(name) if isinstance(callbacks, dict) else None
        extra = {"anyway": given.get("anyway")} if name == "summary" and isinstance(given, dict) else {}
        if given != {**node, **extra} or not isinstance(extra.get("anyway", False), bool):
            raise UserError(
                f"hydra.callbacks.{name}={short(given)}: checks every run and cannot be changed or removed; "
                "leave it as it is, and begin a main file of your own with defaults: [config]"
            )


def check_types(hydra: DictConfig) -> None:
    """Check the types of keys on which Hydra only asserts.

    Raises:
        UserError: naming the key.
    """
    plain: Any = OmegaConf.to_container(hydra, resolve=False)
    verbose = plain.get("verbose")
    require(
        isinstance(verbose, bool | str | list), "hydra.verbose", verbose, "must be true, false, or names of loggers"
    )
    for name in ("launcher", "sweeper"):
        node = plain.get(name)
        is_chosen = isinstance(node, dict) and isinstance(node.get("_target_"), str)
        require(is_chosen, f"hydra.{name}", short(node), f"choose one with hydra/{name}=NAME")
        batch = node.get("max_batch_size")
        is_count = batch is None or (isinstance(batch, int) and batch > 0)
        require(is_count, f"hydra.{name}.max_batch_size", short(batch), "must be a number of jobs, or null")


def check_logging(parts: tuple[str, ...], text: str) -> None:
    """Check a value below ``hydra.job_logging`` or ``hydra.hydra_logging``, from a file or the command line.

    Raises:
        UserError: it could call code, or write to any file.
    """
    plain_word = parts[-1] in LOGGING_WORDS and "$" not in text and "://" not in text
    if text and not plain_word and text not in LOGGING_VALUES:
        raise refusal(parts, text, "could run code or write to any file; use hydra/job_logging=plain or default")


def check_named(folder: str, key: str) -> None:
    """Check that a folder has a name: an empty one, as of a variable that is not set, would be the working directory.

    Raises:
        UserError: it is empty.
    """
    if not str(folder).strip():
        raise UserError(f"{key}=: is empty; give a folder, or leave it out")


def check_file_names(job_name: str, output_subdir: str | None, subfolder: str | None = None) -> None:
    """Check names that become files and folders below a run's or a sweep's folder.

    Args:
        job_name: ``hydra.job.name``, the log's name.
        output_subdir: ``hydra.output_subdir``.
        subfolder: ``hydra.sweep.subdir``; None for a run of its own.

    Raises:
        UserError: one would lead elsewhere.
    """
    accepted = "is a name: no /, and no dot at its start"
    if "/" in job_name or job_name.startswith(".") or not job_name:
        raise UserError(f"hydra.job.name={short(job_name)}: {accepted}; it names the log in the run folder")
    if output_subdir not in (None, RECORD):
        raise UserError(
            f"hydra.output_subdir={short(output_subdir)}: the record of a run is read from {RECORD} in its folder; "
            "leave it out"
        )
    if subfolder is not None and (not stays_inside(subfolder) or Path(subfolder) == Path(".")):
        raise UserError(
            f"hydra.sweep.subdir={short(subfolder)}: points outside the sweep's folder; give a folder within it"
        )


def check_recorded(argv: Sequence[str]) -> None:
    """Check a command line read from a file: it may hold what a file may set, and how a sweep is run.

    Raises:
        UserError: naming what only the user may type.
    """
    if sum(map(len, argv)) > 10_000:
        raise UserError("the recorded command line has more than 10,000 characters; type the sweep's again")
    if not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(argv):
        raise UserError("the recorded command line is not that of a sweep (it has no -m); type the sweep's again")
    words, lines = iter(argv), []
    for word in words:
        if not word.startswith("-"):
            lines.append(word)
            continue
        option, equals, _ = word.partition("=")
        if option not in _OPTIONS:
            raise UserError(
                f"{short(word)}: may not be in a recorded command line; type the sweep's command line again"
            )
        if option not in _OPTIONS[:2] and not equals:
            next(words, None)
    try:
        overrides = OverridesParser.create().parse_overrides(lines)
    except RecursionError:
        raise UserError("the recorded command line is nested too deeply; type the sweep's again") from None
    for override in overrides:
        key = override.key_or_group.strip()
        try:
            check_interpolation(key, str(override.input_line).partition("=")[2], typed=False)
        except UserError as error:
            raise UserError(f"{error}; type the sweep's command line again") from None
        if (override.package or "").split(".")[0] == "hydra":
            raise refusal((key,), override.package, _RECORDED)
        if re.split(r"[./]", key)[0] != "hydra" or key in ("hydra/launcher", "hydra/sweeper", "hydra.sweep.subdir"):
            continue
        value: Any = None if override.is_sweep_override() else override.value()
        for parts, leaf in leaves(value, tuple(key.split(".")), containers=True):
            whole = ".".join(parts)
            plain = whole in ("hydra.job.name", "hydra.sweep.dir", "hydra.verbose", "hydra.mode") and key == whole
            if not trusted(whole) and not plain and not _free(parts, leaf):
                raise refusal(parts, leaf, _RECORDED)


def refusal(parts: Sequence[str], value: Any, why: str) -> UserError:
    """The error for a key that this source may not set."""
    key = ".".join(parts)
    return UserError(without_secrets(f"{key}={short(value)}: {why}; if you trust the file, set {TRUST}={key}"))


def leaves(node: Any, parts: tuple[str, ...] = (), containers: bool = False) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys and value of everything that is not a container; the items of a list have the list's own key.

    Args:
        node: plain Python.
        parts: the keys above it.
        containers: also give empty lists and dictionaries, which replace what was there.
    """
    if containers and isinstance(node, Mapping | list) and not node:
        yield parts, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, (*parts, str(key)), containers)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, parts, containers)
    else:
        yield parts, node


def short(value: Any) -> str:
    """A value as text without control characters, at most 80 characters."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def stays_inside(name: str) -> bool:
    """Whether a path that is joined to a folder stays within it; links aside."""
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _free(parts: tuple[str, ...], value: Any) -> bool:
    """Whether any file may set a key below ``hydra`` to a value."""
    name, text = parts[-1], value if isinstance(value, str) else ""
    is_number = value is None or isinstance(value, bool | int | float)
    if parts[1:2] in (("help",), ("hydra_help",)):
        is_plain = isinstance(value, str) and re.sub("[\n\t]", "", text).isprintable()
        return len(parts) == 3 and is_plain and not re.sub(_PLACES, "", text).count("$")
    if parts[1:2] == ("launcher",) and len(parts) == 3:
        is_word = name in LAUNCHER_WORDS and bool(re.fullmatch(r"[\w.,:@/+ -]*", text)) and isinstance(value, str)
        return name not in ("setup", "submitit_folder", "python") and (is_number or is_word)
    if parts[1:3] == ("sweeper", "params") and len(parts) == 4:
        key = re.sub(r"[\s+~]", "", name)
        return bool(re.fullmatch(r"[\w./]+", key)) and re.split(r"[./]", key)[0] != "hydra"
    return parts[1:2] == ("sweeper",) and len(parts) > 2 and is_number
