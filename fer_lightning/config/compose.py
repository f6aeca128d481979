"""Compose the configuration of a run outside ``hydra.main``."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fer_lightning.config import schema


def compose_config(overrides: list[str]) -> DictConfig:
    """Compose and validate the configuration of a run, without the ``hydra`` node.

    Raises:
        UserError: an invalid override.
        HydraException: an override that cannot be parsed or composed.
    """
    with initialize_config_dir(str(schema.CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        run = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        schema.validate(run, cfg.hydra.runtime.choices)
    return run
