"""Compose the configuration of a run outside ``hydra.main``."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from fer_lightning.config import schema
from fer_lightning.config.settings import without_hydra


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose and validate the configuration of a run, without the ``hydra`` node.

    Raises:
        UserError: an invalid override.
        HydraException: an override that cannot be parsed or composed.
    """
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        run = without_hydra(cfg)
        schema.validate(run, cfg.hydra.runtime.choices)
    return run
