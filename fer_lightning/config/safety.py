"""What a configuration may not do: run code, set up the environment of programs, or carry a secret.

Configurations and command lines are copied from anywhere. Hydra calls whatever ``_target_`` names, hands
``hydra.job_logging`` to Python's logging, which calls and imports what it names, and its launchers write shell scripts.
Here stands what may be in them, checked on what Hydra has composed and before it acts on it. Nothing is resolved for
the check: what could become something else later is refused as it is written.
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
"""The Hydra groups: inside the package when installed from a wheel, beside it in a checkout."""

TRUST = "FER_LIGHTNING_TRUST"
"""Environment variable: comma-separated modules, targets or keys that the user answers for, each with all below it."""

WANDB_KEY = "WANDB_API_KEY"

RESOLVERS = ("now", "hydra", "oc.env", "oc.select", "python_version")
"""OmegaConf's and Hydra's functions that can make no configuration node, unlike ``oc.create``."""

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
"""What Hydra's own choices and the project's hold: other handlers run code, other files could be a ``.bashrc``."""

LAUNCHER_WORDS = ("partition", "account", "qos", "constraint", "gres", "exclude", "comment", "name")
"""Words for the scheduler; other texts, such as ``setup``, reach its shell script as they are."""


def guard_hydra() -> None:
    """Have everything that Hydra composes in this process checked, and keep it from reading pickles."""
    hydra_internals.ConfigLoaderImpl = GuardedLoader  # type: ignore[misc]
    main: Any = importlib.import_module("hydra.main")
    main._get_rerun_conf = _refuse_rerun


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's composing, with ``check`` on its result; used for runs, sweeps, each of their jobs, and ``--help``."""

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
            raise UserError(f"hydra.job.env_copy: no {error} in the environment; set it, or leave it out") from None
        recorded: Any = OmegaConf.to_container(cfg.hydra.overrides, resolve=False)
        if sorted([*recorded["hydra"], *recorded["task"]]) != sorted(overrides):
            raise UserError("hydra.overrides: is Hydra's record of the command line, and cannot be set in a file")
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
        overrides: what the user typed; there alone may stand what sets up programs (``hydra.job.env_set``, most of
            ``hydra.launcher`` and ``hydra.sweeper``).

    Raises:
        UserError: naming the key, and how to say that it is trusted.
    """
    plain = OmegaConf.to_container(cfg, resolve=False) if isinstance(cfg, DictConfig) else cfg
    assert isinstance(plain, Mapping)
    typed = _typed(overrides)
    for parts, value in _leaves(plain):
        key = ".".join(parts)
        if parts[:2] == ("hydra", "overrides") or parts == ("hydra", "job", "override_dirname"):
            continue  # the command line, which Hydra has just noted there; the keys that it sets say it again
        _check_secret(key, f"{key}={value}")
        if parts[0] == "hydra" and trusted(key):
            continue
        text = _text(value)
        if "_target_" in parts:
            _check_target(parts, value)
        elif parts[:2] in (("hydra", "job_logging"), ("hydra", "hydra_logging")):
            _check_logging(parts, text)
        elif parts[0] == "hydra" and key not in typed:
            _check_voice(parts, text)
        if parts[:2] not in (("hydra", "help"), ("hydra", "hydra_help")) and re.search(r"[\x00-\x1f\x7f]", key + text):
            raise UserError(f"{key!r}: holds a line break or another control character")
        _check_interpolation(parts, text)


def check_recorded(overrides: Sequence[str]) -> None:
    """Refuse in a command line that stands in a file what only the user may type.

    Raises:
        UserError: naming the key, and how to say that it is trusted.
    """
    for key, value in _typed(overrides).items():
        if not trusted(key):
            _check_voice(tuple(key.split(".")), _text(value))


def trusted(name: str) -> bool:
    """Whether the user answers for a target, or for a key of Hydra's, by ``FER_LIGHTNING_TRUST``."""
    words = [word.strip() for word in os.environ.get(TRUST, "").split(",")]
    return any(name == word or name.startswith(f"{word}.") for word in words if word)


@functools.cache
def project_targets() -> frozenset[str]:
    """Every ``_target_`` that stands in the package's own files."""
    files = CONF_DIR.rglob("*.yaml")
    return frozenset(re.findall(r"^\s*_target_:\s*([\w.]+)", "\n".join(file.read_text() for file in files), re.M))


def _check_target(parts: tuple[str, ...], value: Any) -> None:
    key = ".".join(parts)
    if not isinstance(value, str) or parts[-1] != "_target_" or "$" in value:
        raise UserError(f"{key}={_short(value)}: what is called must be named here in plain letters")
    # Hydra itself lets only classes of installed plugins through at these two places.
    if key in ("hydra.launcher._target_", "hydra.sweeper._target_") and Plugins.is_in_toplevel_plugins_module(value):
        return
    if value not in project_targets() and not trusted(value):
        raise UserError(
            f"{key}={_short(value)}: is no code of this project and is not run; "
            f"if it is yours, say so in the environment: {TRUST}={_short(value)}"
        )


def _check_logging(parts: tuple[str, ...], text: str) -> None:
    plain_word = parts[-1] in LOGGING_WORDS and "$" not in text and "://" not in text
    if text and not plain_word and text not in LOGGING_VALUES:
        raise _untrusted(parts, text, "could run code or write to any file; use hydra/job_logging=plain or default")


def _check_voice(parts: tuple[str, ...], text: str) -> None:
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
            f"{'.'.join(parts)}={_short(text)}: could hide anything; only keys and {names} fit into ${{...}}"
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
        own = package.split(".")[0] in ("hydra", "hydra_plugins", "fer_lightning")
        if path.startswith("pkg://") and not own and not trusted(package):
            raise UserError(f"{path}: would be imported to search it; give its folder, or set {TRUST}={package}")


def _refuse_rerun(file_path: str, overrides: list[str]) -> DictConfig:
    raise UserError(f"--experimental-rerun={file_path}: a pickle can run any code; give the overrides again instead")


def _untrusted(parts: tuple[str, ...], value: Any, why: str) -> UserError:
    key = ".".join(parts)
    return UserError(f"{key}={_short(value)}: {why}; if you trust the file, set {TRUST}={key}")


def _text(value: Any) -> str:
    """Empty for what is neither a word nor anything stranger that YAML can make."""
    return "" if value is None or isinstance(value, bool | int | float) else str(value)


def _short(value: Any) -> str:
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def _registered(group: str) -> frozenset[tuple[str, str]]:
    """Texts of the project's files of a group, and of the installed plugins' defaults, by the last part of the key."""
    store = ConfigStore.instance()
    nodes = [OmegaConf.load(path) for path in (CONF_DIR / group).glob("*.yaml")]
    nodes += [OmegaConf.structured(store.load(f"{group}/{name}").node) for name in store.list(group)]
    plain: Any = [OmegaConf.to_container(node, resolve=False) for node in nodes]
    return frozenset((parts[-1], value) for node in plain for parts, value in _leaves(node) if isinstance(value, str))


def _typed(overrides: Sequence[str]) -> dict[str, Any]:
    """What ``key=value`` sets below ``hydra``, by full key; files that are chosen there are no part of it."""
    lines = [line for line in overrides if line.lstrip("+~").startswith("hydra.")]
    parsed = OverridesParser.create().parse_overrides(lines) if lines else []
    leaves = [leaf for item in parsed if item.package is None for leaf in _leaves(item.value(), (item.key_or_group,))]
    return {".".join(parts): value for parts, value in leaves}


def _leaves(node: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Everything that is no container, with its keys; the items of a list go by the list's own key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, (*parts, str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, parts)
    else:
        yield parts, node
