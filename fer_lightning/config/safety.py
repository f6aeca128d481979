"""Safety of configurations: they may not run other code, set up programs, write elsewhere, or hold a secret.

Configurations and command lines are copied from anywhere. Hydra calls whatever ``_target_`` names, passes
``hydra.job_logging`` to Python's logging, which calls and imports what it names, and its launchers write shell scripts.
The checks here see each file that Hydra reads and what it has composed, before it acts on it. They resolve no
interpolation: text that could become something else later is refused as it is written. ``schema.validate`` checks
secrets again in what was resolved.
"""

import copy
import functools
import importlib
import importlib.util
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra._internal.hydra as hydra_internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fer_lightning.config import hydra_keys
from fer_lightning.config.hydra_keys import leaves, short
from fer_lightning.config.interpolations import bounded, check_expansion, check_interpolation
from fer_lightning.config.secrets import check_secrets, is_secret
from fer_lightning.config.yaml_files import MAX_DIGITS, BoundedFileSource
from fer_lightning.presentation.printable import has_control_characters
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import real_path
from fer_lightning.runtime.imports import TRUST, trusted

_PACKAGE = Path(__file__).parent.parent
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""Folder of the Hydra groups: inside the package when installed from a wheel, beside it in a checkout."""

MAX_VALUES = 2_000
"""Values of a composed configuration; the largest of this project has some 250."""

CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "hydra/output": ("default",),
    "hydra/launcher": ("basic",),
    "hydra/sweeper": ("basic",),
    "hydra/hydra_logging": ("plain", "default"),
    "hydra/job_logging": ("plain", "default"),
    "hydra/callbacks": (None,),
    "hydra/env": ("default", None),
}
"""What a file may choose of Hydra's groups; of help texts anything."""


KEPT_JOBS = 1000
"""Jobs of a sweep whose configuration is kept in memory; each takes some 200 kB."""

_LONG_NUMBER = re.compile(rf"(?<![\w./])[0-9][0-9_]{{{MAX_DIGITS},}}(?![\w./])")


def guard_hydra() -> None:
    """Make Hydra check everything that it composes in this process, and refuse to read pickles."""
    hydra_internals.ConfigLoaderImpl = GuardedLoader  # type: ignore[misc]  # Hydra takes no other loader
    main: Any = importlib.import_module("hydra.main")
    main._get_rerun_conf = _refuse_rerun


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader with checks of each file and of the result; for runs, sweeps and their jobs, and ``--help``."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        _check_search_path([str(source.path) for source in config_search_path.get_path()])
        Plugins.instance()  # registers Hydra's own source of files
        SourcesRegistry.instance().types["file"] = BoundedFileSource
        super().__init__(config_search_path)
        self._jobs: dict[tuple[str, ...], DictConfig] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_jobs": {}}  # launchers pickle it with every job

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        check_secrets([("the command line", line) for line in overrides])
        for line in overrides:  # before OmegaConf makes a float of it
            if number := _LONG_NUMBER.search(line):
                raise UserError(
                    f"{line.partition('=')[0]}: a whole number has {len(number[0]):,} digits, and at most {MAX_DIGITS} "
                    "are read"
                )
        only_for_the_mode = not validate_sweep_overrides  # Hydra composes everything again afterwards
        typed = RunMode.RUN if overrides[-1:] == ["hydra.mode=RUN"] else None  # as for each job of a sweep
        if only_for_the_mode and (typed is not None or not _may_set_the_mode(overrides)):
            return OmegaConf.create({"hydra": {"mode": typed}})
        try:
            with bounded():
                cfg = self._load(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        except (UserError, HydraException, OmegaConfBaseException, YAMLError):
            raise
        except Exception as error:  # Hydra asserts what a file may get wrong
            raise _composition_error(error, overrides) from None
        recorded: Any = OmegaConf.to_container(cfg.hydra.overrides, resolve=False)
        if sorted([*recorded["hydra"], *recorded["task"]]) != sorted(overrides):
            raise UserError(
                "hydra.overrides: is Hydra's record of the command line; no file may set it, remove it there"
            )
        check(cfg, overrides)
        check_expansion(cfg)
        if from_shell:  # not compose(), which runs nothing
            parsed = OverridesParser.create().parse_overrides(overrides)
            hydra_keys.check_choices(cfg.hydra.runtime.choices, parsed, CHOICES)
            if config_name is not None:  # --hydra-help shows Hydra's own configuration and runs nothing
                hydra_keys.check_callbacks(cfg.hydra)
            hydra_keys.check_types(cfg.hydra)
        return cfg

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """As Hydra, but once for each job, which the plan of the sweep and Hydra's own check both ask for."""
        key = tuple(sweep_overrides)
        composed = self._jobs.get(key)
        if composed is None:
            composed = super().load_sweep_config(master_config, sweep_overrides)
            if len(self._jobs) < KEPT_JOBS:
                self._jobs[key] = composed
        return copy.deepcopy(composed)

    def get_group_options(self, *group: Any, **options: Any) -> list[str]:
        """The choices of a group for help and completion: no folder ``_base``, no names with control characters."""
        names = super().get_group_options(*group, **options)
        return [name for name in names if name != SHARED and name.isprintable()]

    def _load(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool,
        validate_sweep_overrides: bool,
    ) -> DictConfig:
        """As Hydra, but a sweep over a group also takes settings that the group's default choice lacks.

        Hydra composes the sweep itself with the default choice, and refuses ``imbalance=crt,lws
        imbalance.first_stage=RUN`` because ``imbalance=none`` lacks the key. The jobs are composed and checked with all
        overrides.
        """
        try:
            return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        except ConfigCompositionException:
            fewer = _without_settings_of_swept_groups(overrides) if run_mode == RunMode.MULTIRUN else overrides
            if len(fewer) == len(overrides):
                raise
        cfg = super().load_configuration(config_name, fewer, run_mode, from_shell, validate_sweep_overrides)
        hydra = set(cfg.hydra.overrides.hydra)
        with read_write(cfg.hydra):
            cfg.hydra.overrides.task = [line for line in overrides if line not in hydra]
        return cfg

    def _process_config_searchpath(self, config_name: str | None, parsed_overrides: list[Any], repo: Any) -> None:
        primary = repo.load_config(config_path=config_name) if config_name else None
        in_file = OmegaConf.select(primary.config, "hydra.searchpath") if primary else None
        if in_file is not None and not trusted("hydra.searchpath"):
            raise hydra_keys.refusal(
                ("hydra", "searchpath"), in_file, "no file may set it; type it on the command line"
            )
        typed = [item.value() for item in parsed_overrides if item.get_key_element() == "hydra.searchpath"]
        for paths in (in_file, *typed):
            _check_search_path([str(path) for path in paths] if paths else [])
        super()._process_config_searchpath(config_name, parsed_overrides, repo)
        for item in parsed_overrides:
            _check_choice(item, repo)

    def _load_single_config(self, default: Any, repo: Any) -> Any:
        loaded = super()._load_single_config(default, repo)
        path = str(default.config_path)
        scheme, _, folder = str(loaded.path).partition("://")
        if scheme == "file" and real_path(folder) != real_path(CONF_DIR):
            hydra_keys.check_file(loaded.config, path)
            if not default.primary:
                hydra_keys.check_defaults(loaded.defaults_list or [], path)
        else:
            hydra_keys.check_placement(loaded.config, path, default.package)
            _check_shadowed(path, repo)
        return loaded


def _may_set_the_mode(overrides: Sequence[str]) -> bool:
    """Whether Hydra may be in another mode than its options say; of files, only trusted ones can set it."""
    return trusted("hydra.mode") or any(re.search(r"\bmode\b", line) for line in overrides)


def _without_settings_of_swept_groups(overrides: Sequence[str]) -> list[str]:
    """Overrides without those of single keys in a group whose choice is swept over."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = tuple(f"{item.key_or_group.replace('/', '.')}." for item in parsed if item.is_sweep_override())
    return [
        line
        for line, item in zip(overrides, parsed, strict=True)
        if item.is_sweep_override() or not item.key_or_group.startswith(swept)
    ]


SHARED = "_base"
"""Folder of a group with what its choices share; its files are no choices."""

SEVERAL = ("callbacks", "experiment")
"""Groups of which a run may have several choices, as in ``callbacks=[ema,early_stopping]``."""


def _check_choice(override: Any, repo: Any) -> None:
    """Check that a group is given a name: Hydra asserts it without naming the group, and would mix two choices.

    Raises:
        UserError: for ``model=null``, ``model=3``, ``optim=[adam,sgd]`` or a file of ``_base``, with the choices of
            the group.
    """
    group = override.key_or_group
    if not group:
        raise UserError(f"{override.input_line}: has no key before the sign =; give key=value")
    if override.is_sweep_override() or override.is_delete():
        return
    value = override.value()
    if isinstance(value, dict) or (isinstance(value, str) and SHARED not in value.split("/")):
        return
    if isinstance(value, list) and (group in SEVERAL or group.startswith("hydra/")):
        return
    if repo.group_exists(group):
        choices = ", ".join(repo.get_group_options(group, ObjectType.CONFIG))
        raise UserError(
            f"{override.input_line}: no such choice; {group} is one of: {choices}; leave {group} out for its default"
        )


def _check_shadowed(path: str, repo: Any) -> None:
    """Check that no folder of the user's has a file of this name too, which Hydra would silently ignore.

    Raises:
        UserError: naming it.
    """
    for source in repo.get_sources():
        folder = Path(str(source.path))
        if source.scheme() == "file" and real_path(folder) != real_path(CONF_DIR) and source.is_config(path):
            raise UserError(
                f"{folder / path}.yaml: has the name of a file of this project, which is used in its place; "
                f"give it another name, such as my_{Path(path).name}"
            )


def check(cfg: DictConfig | Mapping[Any, Any], overrides: Sequence[str] = ()) -> None:
    """Refuse a configuration that could run other code than this project's, or that holds a secret.

    Args:
        cfg: a composed configuration, or a part of one below its own keys.
        overrides: what the user typed, who may read more of the environment than a file.

    Raises:
        UserError: naming the key, and how to trust it.
    """
    plain = OmegaConf.to_container(cfg, resolve=False) if isinstance(cfg, DictConfig) else cfg
    assert isinstance(plain, Mapping)
    items = list(leaves(plain))
    if len(items) > MAX_VALUES:
        raise UserError(f"configuration: has {len(items)} values, more than {MAX_VALUES}; remove what is not used")
    # Hydra's record of the command line, whose keys are checked in their own places.
    own = [item for item in items if item[0][:2] != ("hydra", "overrides")]
    own = [item for item in own if item[0] != ("hydra", "job", "override_dirname")]
    check_secrets((key := ".".join(parts), f"{key}={value}") for parts, value in own)
    for parts, value in own:
        key = ".".join(parts)
        if parts[0] == "hydra" and trusted(key):
            continue
        if parts[:3] == ("hydra", "job", "env_set") and is_secret(parts[-1]) and len(str(value)) > 7:
            raise UserError(f"{key}: would be written to the run folder; set it in the environment only, with export")
        text = "" if value is None or isinstance(value, bool | int | float) else str(value)
        if "_target_" in parts:
            _check_target(parts, value)
        elif parts[:2] in (("hydra", "job_logging"), ("hydra", "hydra_logging")):
            hydra_keys.check_logging(parts, text)
        is_help = parts[:2] in (("hydra", "help"), ("hydra", "hydra_help"))
        if not is_help and has_control_characters(key + text):
            raise UserError(f"{key!r}: holds a line break or another control character; remove it")
        if "${" in text and parts in (("hydra",), ("hydra", "job")):
            raise UserError(f"{key}={short(text)}: may expand to anything; write its keys out")
        check_interpolation(key, text, typed=any(text in line for line in overrides))


def recorded(content: Any, name: str) -> DictConfig:
    """A configuration that a run folder or a checkpoint holds, safe to resolve within ``bounded``.

    Args:
        content: plain Python.
        name: of the file, for errors.

    Raises:
        UserError: no configuration, or an unsafe one.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{name}: damaged, its configuration holds no keys")
    try:
        check(content)
        config = OmegaConf.create(dict(content))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # OmegaConf raises many types for what is not a configuration
        raise UserError(f"{name}: damaged, no configuration ({type(error).__name__})") from None
    return config


@functools.cache
def project_targets() -> frozenset[str]:
    """Every ``_target_`` in the package's own files."""
    files = CONF_DIR.rglob("*.yaml")
    return frozenset(re.findall(r"^\s*_target_:\s*([\w.]+)", "\n".join(file.read_text() for file in files), re.M))


def _check_target(parts: tuple[str, ...], value: Any) -> None:
    key = ".".join(parts)
    if not isinstance(value, str) or parts[-1] != "_target_" or "$" in value:
        raise UserError(f"{key}={short(value)}: a target must be written out here, without interpolation")
    # At these two keys Hydra itself accepts only classes of installed plugins.
    if key in ("hydra.launcher._target_", "hydra.sweeper._target_") and Plugins.is_in_toplevel_plugins_module(value):
        return
    if value not in project_targets() and not trusted(value):
        raise UserError(
            f"{key}={short(value)}: is not code of this project and is not run; "
            f"if it is yours, trust it in the environment: {TRUST}={short(value)}"
        )
    if value not in project_targets() and not _is_of_its_module(value):
        raise UserError(
            f"{key}={short(value)}: is no name of a module that you trust, but of what that module uses; "
            f"name it whole to trust it: {TRUST}={short(value)}"
        )


def _is_of_its_module(target: str) -> bool:
    """Whether a trusted target is named whole, or is of a module: ``own.torch.hub.load`` is torch's, not own's."""
    if target in map(str.strip, os.environ.get(TRUST, "").split(",")):
        return True
    try:
        if importlib.util.find_spec(target.partition(".")[0]) is None:
            return True  # there is none, which is reported where it is imported
        return importlib.util.find_spec(target.rpartition(".")[0]) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _check_search_path(paths: Sequence[str]) -> None:
    for path in paths:
        package = path.removeprefix("pkg://").replace("/", ".")
        is_known = package.split(".")[0] in ("hydra", "hydra_plugins", "fer_lightning")
        if path.startswith("pkg://") and not is_known and not trusted(package):
            raise UserError(f"{path}: would be imported to search it; give its folder, or set {TRUST}={package}")


def _composition_error(error: Exception, overrides: Sequence[str]) -> UserError:
    for line in overrides:
        if line.lstrip("+~").startswith("hydra.sweeper.params"):
            return UserError(f"{short(line)}: only a file may set it; give the keys themselves, such as seed=1,2")
    if isinstance(error, KeyError) and traceback.extract_tb(error.__traceback__)[-1].name == "__getitem__":
        # Raised by os.environ.
        return UserError(f"hydra.job.env_copy: {error} is not set in the environment; set it, or leave it out")
    reason = " ".join(str(error).split())[:200]
    return UserError(f"configuration: cannot be composed ({type(error).__name__}: {reason}); check its files")


def _refuse_rerun(file_path: str, overrides: list[str]) -> DictConfig:
    raise UserError(f"--experimental-rerun={file_path}: a pickle can run any code; give the overrides again instead")
