"""``python -m fer_lightning``: compose, validate, run; heavy imports wait until the configuration is good."""

import logging
import os
from pathlib import Path

# Before anything imports torch: idle OpenMP threads that spin starve the other processes of a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fer_lightning import config, stop, sweep
from fer_lightning.errors import Interrupted, UserError
from fer_lightning.run_folder import RESUMABLE, read_status


@hydra.main(version_base="1.3", config_path=str(config.CONF_DIR), config_name="config")
def app(cfg: DictConfig) -> float | None:
    """Run one composed configuration, or hand a sweep's job to a process of its own."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return sweep.run_job(cfg)
    first = config.is_first_process()
    if not first:
        logging.getLogger().setLevel(logging.WARNING)
        stop.end_with_parent()
    stop.listen()
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        from fer_lightning.train import run

        result = run(cfg, folder)
    except UserError as error:
        config.fail(error)  # Hydra would print "Error executing job" and all overrides first
    except Interrupted as stopped:
        if not first:  # Lightning would kill the first process for any other code
            raise SystemExit(0) from None
        step = read_status(folder).get("step", 0)
        saved = f"saved at step {step}, go on" if step else "nothing was trained yet, begin again"
        config.fail(f"{stopped}; {saved} with resume=auto hydra.run.dir={folder}", code=RESUMABLE)
    return result.metrics.get("val/f1_macro") if result else None


def main() -> None:
    """The command line: user mistakes end in one line and code 2, bugs keep their traceback."""
    # Hydra then raises instead of printing its own many-line message.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    config.run_tool(app)


if __name__ == "__main__":
    main()
