"""Compose the configuration of a run outside ``hydra.main``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fer_lightning.config import safety, schema
from fer_lightning.config.hook import check_run
from fer_lightning.config.messages import explain
from fer_lightning.config.safety import GuardedLoader
from fer_lightning.config.settings import without_hydra
from fer_lightning.runtime.errors import UserError, one_line

HYDRA_KEYS = ("hydra.run.dir", "hydra.searchpath")
"""What may be set of Hydra's own configuration; the rest is about its command line, its sweeps and its logging."""

_RESOLVERS = ("now", "hydra", "python_version")


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose and validate the configuration of a run, without the ``hydra`` node.

    Raises:
        UserError: an invalid override.
        HydraException: an override that cannot be parsed or composed.
    """
    with initialize_config_dir(str(safety.CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        run = without_hydra(cfg)
        schema.validate(run, cfg.hydra.runtime.choices, cfg.hydra.searchpath)
    return run


@contextmanager
def composed(overrides: Sequence[str], folder: Path | None = None) -> Iterator[DictConfig]:
    """A run's configuration, valid, while ``${hydra:...}`` can be resolved in it.

    Args:
        overrides: ``key=value``, as typed on the command line.
        folder: the run folder, instead of ``hydra.run.dir``.

    Yields:
        The configuration with its ``hydra`` node, where ``hydra.runtime.output_dir`` is the run folder, which is not
        made yet.

    Raises:
        UserError: what the command line would refuse; several values for a key, which is a sweep; one of Hydra's own
            keys that is not in ``HYDRA_KEYS``.
    """
    with _hydra_of_its_own():
        try:
            _check_overrides(overrides, folder)
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration("config", list(overrides), RunMode.RUN)
            cfg.hydra.mode = RunMode.RUN
            if folder is not None:
                cfg.hydra.run.dir = str(folder)
            HydraConfig.instance().set_config(cfg)  # a copy, which ${hydra:...} is resolved in
            check_run(cfg)
            with read_write(cfg.hydra), open_dict(cfg.hydra.runtime):
                cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.run.dir).absolute())
            HydraConfig.instance().set_config(cfg)
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            raise UserError(explain(error, overrides)) from None
        yield cfg


def _check_overrides(overrides: Sequence[str], folder: Path | None) -> None:
    example = 'give a list such as ["imbalance=focal", "seed=1"]'
    listed = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not listed or not all(isinstance(word, str) for word in overrides):
        raise UserError(f"overrides={overrides!r}: must be a list of strings; {example}")
    options = [word for word in overrides if word.startswith("-")]
    if options:
        raise UserError(f"{options[0]}: options belong to the command line, python -m fer_lightning; {example}")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except (RecursionError, ValueError) as error:
        longest = max(overrides, key=len)
        raise UserError(f"{longest[:80]}: cannot be read ({one_line(error)[:80]}); {example}") from None
    for override in parsed:
        key, line = override.get_key_element().lstrip("+~"), override.input_line
        if override.is_sweep_override():
            raise UserError(
                f"{line}: several values make several runs; call this once for each, or sweep with "
                f"python -m fer_lightning -m; for one list give [a,b]"
            )
        if key.split(".")[0].split("/")[0] == "hydra" and key not in HYDRA_KEYS:
            raise UserError(f"{line}: belongs to the command line; of Hydra's keys give only {', '.join(HYDRA_KEYS)}")
        if key == "hydra.run.dir" and folder is not None:
            raise UserError(f"{line}: the folder is given twice; leave out this or folder={str(folder)!r}")


@contextmanager
def _hydra_of_its_own() -> Iterator[None]:
    """Initialise Hydra with the guarded loader; restore its earlier global state afterwards."""
    hydra, config = GlobalHydra.instance(), HydraConfig.instance()
    runtime, base = JobRuntime.instance(), VersionBase.instance()
    before = hydra.hydra, config.cfg, runtime.get("name"), base.version_base
    Plugins.instance()  # registers Hydra's own source of files
    sources = dict(SourcesRegistry.instance().types)
    new_resolvers = [name for name in _RESOLVERS if not OmegaConf.has_resolver(name)]
    try:
        setbase("1.3")
        hydra.clear()
        search_path = create_config_search_path(str(safety.CONF_DIR))
        hydra.initialize(Hydra(task_name="fer_lightning", config_loader=GuardedLoader(search_path)))
        yield
    finally:
        hydra.hydra, config.cfg, name, base.version_base = before
        runtime.set("name", name)
        SourcesRegistry.instance().types = sources  # the guarded loader has put its own there
        for resolver in new_resolvers:
            OmegaConf.clear_resolver(resolver)
