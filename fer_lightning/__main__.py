"""``python -m fer_lightning``: compose, validate, run; heavy imports wait until the configuration is good."""

import os

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fer_lightning.config import command_line, hydra_options, safety
from fer_lightning.runtime.version import __version__
from fer_lightning.sweeps.run_job import run_job
from fer_lightning.training.start import start


@hydra.main(version_base="1.3", config_path=str(safety.CONF_DIR), config_name="config")
def app(cfg: DictConfig) -> float | None:
    """Run one composed configuration, or start the process of a sweep's job."""
    return run_job(cfg) if HydraConfig.get().mode == RunMode.MULTIRUN else start(cfg)


def main() -> None:
    """The command line: user mistakes end in one line and code 2, bugs keep their traceback."""
    # Hydra then raises instead of printing its own many-line message.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra_options.replace_parser(__version__)
    command_line.run_tool(app, prints_results=False)


if __name__ == "__main__":
    main()
