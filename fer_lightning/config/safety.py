"""Safety of configurations: they may not run other code, set up the environment of programs, or hold a secret.

Configurations and command lines are copied from anywhere. Hydra calls whatever ``_target_`` names, passes
``hydra.job_logging`` to Python's logging, which calls and imports what it names, and its launchers write shell scripts.
The checks here see what Hydra has composed, before it acts on it. They resolve no interpolation: text that could become
something else later is refused as it is written.
"""

import functools
import importlib
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra._internal.hydra as hydra_internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fer_lightning.runtime.errors import UserError

_PACKAGE = Path(__file__).parent.parent
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""Folder of the Hydra groups: inside the package when installed from a wheel, beside it in a checkout."""

TRUST = "FER_LIGHTNING_TRUST"
"""Environment variable: comma-separated modules, targets or keys that the user trusts, each with all below it."""

WANDB_KEY = "WANDB_API_KEY"

RESOLVERS = ("now", "hydra", "oc.env", "oc.select", "python_version")
"""OmegaConf's and Hydra's functions that cannot create a configuration node, unlike ``oc.create``."""

_HARMLESS = re.compile(rf"\$\{{(?:[^${{}}:]*|(?:{'|'.join(map(re.escape, RESOLVERS))}):[^${{}}]*)\}}")

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

LAUNCHER_WORDS = ("partition", "account", "qos", "constraint", "gres", "exclude", "comment", "name")
"""Options of the scheduler; other texts, such as ``setup``, are copied into its shell script."""


def guard_hydra() -> None:
    """Make Hydra check everything that it composes in this process, and refuse to read pickles."""
    hydra_internals.ConfigLoaderImpl = GuardedLoader  # type: ignore[misc]
    main: Any = importlib.import_module("hydra.main")
    main._get_rerun_conf = _refuse_rerun


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader with ``check`` on its result; used for runs, sweeps, each of their jobs, and ``--help``."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        _check_search_path([str(source.path) for source in config_search_path.get_path()])
        super().__init__(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        _check_secret("the command line", " ".join(overrides))
        try:
            cfg = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        except KeyError as error:
            if traceback.extract_tb(error.__traceback__)[-1].name != "__getitem__":  # that of os.environ
                raise
            raise UserError(
                f"hydra.job.env_copy: {error} is not set in the environment; set it, or leave it out"
            ) from None
        recorded: Any = OmegaConf.to_container(cfg.hydra.overrides, resolve=False)
        if sorted([*recorded["hydra"], *recorded["task"]]) != sorted(overrides):
            raise UserError(
                "hydra.overrides: is Hydra's record of the command line; no file may set it, remove it there"
            )
        check(cfg, overrides)
        return cfg

    def _process_config_searchpath(self, config_name: str | None, parsed_overrides: list[Any], repo: Any) -> None:
        primary = repo.load_config(config_path=config_name) if config_name else None
        in_file = OmegaConf.select(primary.config, "hydra.searchpath") if primary else None
        typed = [item.value() for item in parsed_overrides if item.get_key_element() == "hydra.searchpath"]
        for paths in (in_file, *typed):
            _check_search_path([str(path) for path in paths] if paths else [])
        super()._process_config_searchpath(config_name, parsed_overrides, repo)


def check(cfg: DictConfig | Mapping[Any, Any], overrides: Sequence[str] = ()) -> None:
    """Refuse a configuration that could run other code than this project's, or that holds the W&B key.

    Args:
        cfg: a composed configuration, or a part of one below its own keys.
        overrides: what the user typed; only there are settings accepted that set up programs (``hydra.job.env_set``,
            most of ``hydra.launcher`` and ``hydra.sweeper``).

    Raises:
        UserError: naming the key, and how to trust it.
    """
    plain = OmegaConf.to_container(cfg, resolve=False) if isinstance(cfg, DictConfig) else cfg
    assert isinstance(plain, Mapping)
    typed = _typed(overrides)
    for parts, value in _leaves(plain):
        key = ".".join(parts)
        if parts[:2] == ("hydra", "overrides") or parts == ("hydra", "job", "override_dirname"):
            continue  # Hydra's record of the command line, whose keys are checked in their own places
        _check_secret(key, f"{key}={value}")
        if parts[0] == "hydra" and trusted(key):
            continue
        text = _text(value)
        if "_target_" in parts:
            _check_target(parts, value)
        elif parts[:2] in (("hydra", "job_logging"), ("hydra", "hydra_logging")):
            _check_logging(parts, text)
        elif parts[0] == "hydra" and key not in typed:
            _check_typed_only(parts, text)
        if parts[:2] not in (("hydra", "help"), ("hydra", "hydra_help")) and re.search(r"[\x00-\x1f\x7f]", key + text):
            raise UserError(f"{key!r}: holds a line break or another control character; remove it")
        _check_interpolation(parts, text)


def check_recorded(overrides: Sequence[str]) -> None:
    """Refuse a command line read from a file if it sets what only the user may type.

    Raises:
        UserError: naming the key, and how to trust it.
    """
    for key, value in _typed(overrides).items():
        if not trusted(key):
            _check_typed_only(tuple(key.split(".")), _text(value))


def trusted(name: str) -> bool:
    """Whether the user trusts a target, or a key below ``hydra``, by ``FER_LIGHTNING_TRUST``."""
    words = [word.strip() for word in os.environ.get(TRUST, "").split(",")]
    return any(name == word or name.startswith(f"{word}.") for word in words if word)


@functools.cache
def project_targets() -> frozenset[str]:
    """Every ``_target_`` in the package's own files."""
    files = CONF_DIR.rglob("*.yaml")
    return frozenset(re.findall(r"^\s*_target_:\s*([\w.]+)", "\n".join(file.read_text() for file in files), re.M))


def _check_target(parts: tuple[str, ...], value: Any) -> None:
    key = ".".join(parts)
    if not isinstance(value, str) or parts[-1] != "_target_" or "$" in value:
        raise UserError(f"{key}={_short(value)}: a target must be written out here, without interpolation")
    # At these two keys Hydra itself accepts only classes of installed plugins.
    if key in ("hydra.launcher._target_", "hydra.sweeper._target_") and Plugins.is_in_toplevel_plugins_module(value):
        return
    if value not in project_targets() and not trusted(value):
        raise UserError(
            f"{key}={_short(value)}: is not code of this project and is not run; "
            f"if it is yours, trust it in the environment: {TRUST}={_short(value)}"
        )


def _check_logging(parts: tuple[str, ...], text: str) -> None:
    plain_word = parts[-1] in LOGGING_WORDS and "$" not in text and "://" not in text
    if text and not plain_word and text not in LOGGING_VALUES:
        raise _untrusted(parts, text, "could run code or write to any file; use hydra/job_logging=plain or default")


def _check_typed_only(parts: tuple[str, ...], text: str) -> None:
    name = parts[-1]
    if parts[1:3] in (("job", "env_set"), ("job", "env_copy")):
        harmless = len(parts) > 3 and os.environ.get(name) == text  # what hydra.job.env_copy does
    elif parts[1:3] == ("sweeper", "params") and len(parts) > 3:
        harmless = not parts[3].lstrip("+~ ").startswith("hydra")
    elif parts[1:2] in (("launcher",), ("sweeper",)):
        harmless = not text or name in LAUNCHER_WORDS or (name, text) in _registered(f"hydra/{parts[1]}")
    else:
        harmless = True
    if not harmless:
        raise _untrusted(parts, text, "changes what programs do, so no file may set it; type it on the command line")


def _check_interpolation(parts: tuple[str, ...], text: str) -> None:
    rest = text
    while "${" in rest and rest != (shorter := _HARMLESS.sub("", rest)):
        rest = shorter
    if "${" in rest or ("${" in text and parts in (("hydra",), ("hydra", "job"))):
        names = ", ".join(RESOLVERS)
        raise UserError(
            f"{'.'.join(parts)}={_short(text)}: could stand for anything; ${{...}} may hold only keys and {names}"
        )


def _check_secret(where: str, text: str) -> None:
    secret = os.environ.get(WANDB_KEY, "")
    if WANDB_KEY in text.upper() or (len(secret) > 7 and secret in text):
        where = where.replace(secret, "...") if secret else where
        raise UserError(
            f"{where}: holds the W&B key or {WANDB_KEY}, which would be written to the run folder; "
            f"set it in the environment only (export {WANDB_KEY}=...), or use wandb login"
        )


def _check_search_path(paths: Sequence[str]) -> None:
    for path in paths:
        package = path.removeprefix("pkg://").replace("/", ".")
        is_known = package.split(".")[0] in ("hydra", "hydra_plugins", "fer_lightning")
        if path.startswith("pkg://") and not is_known and not trusted(package):
            raise UserError(f"{path}: would be imported to search it; give its folder, or set {TRUST}={package}")


def _refuse_rerun(file_path: str, overrides: list[str]) -> DictConfig:
    raise UserError(f"--experimental-rerun={file_path}: a pickle can run any code; give the overrides again instead")


def _untrusted(parts: tuple[str, ...], value: Any, why: str) -> UserError:
    key = ".".join(parts)
    return UserError(f"{key}={_short(value)}: {why}; if you trust the file, set {TRUST}={key}")


def _text(value: Any) -> str:
    """A value as text; empty for null, true, false and numbers, which are harmless."""
    return "" if value is None or isinstance(value, bool | int | float) else str(value)


def _short(value: Any) -> str:
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def _registered(group: str) -> frozenset[tuple[str, str]]:
    """Last part of the key and text, for all texts in the project's files of a group and the plugins' defaults."""
    store = ConfigStore.instance()
    nodes = [OmegaConf.load(path) for path in (CONF_DIR / group).glob("*.yaml")]
    nodes += [OmegaConf.structured(store.load(f"{group}/{name}").node) for name in store.list(group)]
    plain: Any = [OmegaConf.to_container(node, resolve=False) for node in nodes]
    return frozenset((parts[-1], value) for node in plain for parts, value in _leaves(node) if isinstance(value, str))


def _typed(overrides: Sequence[str]) -> dict[str, Any]:
    """Full key -> value for what ``key=value`` sets below ``hydra``, without the content of chosen files."""
    lines = [line for line in overrides if line.lstrip("+~").startswith("hydra.")]
    parsed = OverridesParser.create().parse_overrides(lines) if lines else []
    leaves = [leaf for item in parsed if item.package is None for leaf in _leaves(item.value(), (item.key_or_group,))]
    return {".".join(parts): value for parts, value in leaves}


def _leaves(node: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys and value of everything that is not a container; the items of a list have the list's own key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, (*parts, str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, parts)
    else:
        yield parts, node
