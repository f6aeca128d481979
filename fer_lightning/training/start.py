"""One run as the command line starts it: its signals, its exit codes, and what it prints; torch is imported late."""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fer_lightning.config import command_line
from fer_lightning.presentation.printable import printable
from fer_lightning.runtime import processes, signals
from fer_lightning.runtime.errors import Interrupted, Paused, UserError
from fer_lightning.runtime.run_folder import RESUMABLE, read_status


def start(cfg: DictConfig) -> float | None:
    """Run a composed configuration in the folder that Hydra made.

    Returns:
        The score that ``monitor`` names; None without one, on the processes of a distributed run other than the first,
        and after a ``fast_dev_run``.

    Raises:
        SystemExit: with the code of docs/faults.md, for a mistake of the user's and for a stopped run.
    """
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
            print(printable(f"{stopped}; {_resume_hint(folder)}"), flush=True)
            raise SystemExit(RESUMABLE) from None
        command_line.fail(f"{stopped}; {_resume_hint(folder)}", code=RESUMABLE)
    except KeyboardInterrupt:
        command_line.fail(f"interrupted; {_resume_hint(folder)}", code=130)
    return result.metrics.get(cfg.monitor) if result else None


def _resume_hint(folder: Path) -> str:
    step = read_status(folder).get("step", 0)
    saved = f"saved at step {step}, resume" if step else "nothing was trained yet, start again"
    return f"{saved} with resume=auto hydra.run.dir={folder}"
