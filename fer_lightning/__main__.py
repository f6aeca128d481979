"""``python -m fer_lightning``: compose, validate, run; heavy imports wait until the configuration is good."""

import logging
import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fer_lightning.config import command_line, hydra_options, safety
from fer_lightning.runtime import processes, signals
from fer_lightning.runtime.errors import Interrupted, Paused, UserError
from fer_lightning.runtime.run_folder import RESUMABLE, read_status
from fer_lightning.runtime.version import __version__
from fer_lightning.sweeps.run_job import run_job


@hydra.main(version_base="1.3", config_path=str(safety.CONF_DIR), config_name="config")
def app(cfg: DictConfig) -> float | None:
    """Run one composed configuration, or start the process of a sweep's job."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(cfg)
    is_first = processes.is_first_process()
    if not is_first:
        logging.getLogger().setLevel(logging.WARNING)
        signals.end_with_parent()
    signals.listen()
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        from fer_lightning.training.results import print_results
        from fer_lightning.training.run import run

        result = run(cfg, folder)
        if result is not None:
            print_results(cfg, folder, result.metrics)
    except UserError as error:
        command_line.fail(error)  # Hydra would print "Error executing job" and all overrides first
    except Interrupted as stopped:
        if not is_first:  # Lightning would kill the first process for any other code
            raise SystemExit(0) from None
        if isinstance(stopped, Paused):
            print(f"{stopped}; {_resume_hint(folder)}", flush=True)
            raise SystemExit(RESUMABLE) from None
        command_line.fail(f"{stopped}; {_resume_hint(folder)}", code=RESUMABLE)
    except KeyboardInterrupt:
        command_line.fail(f"interrupted; {_resume_hint(folder)}", code=130)
    return result.metrics.get(cfg.monitor) if result else None


def _resume_hint(folder: Path) -> str:
    step = read_status(folder).get("step", 0)
    saved = f"saved at step {step}, resume" if step else "nothing was trained yet, start again"
    return f"{saved} with resume=auto hydra.run.dir={folder}"


def main() -> None:
    """The command line: user mistakes end in one line and code 2, bugs keep their traceback."""
    # Hydra then raises instead of printing its own many-line message.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra_options.replace_parser(__version__)
    command_line.run_tool(app, prints_results=False)


if __name__ == "__main__":
    main()
