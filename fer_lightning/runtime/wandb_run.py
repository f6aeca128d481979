"""Starting and ending a W&B run so that an outage is a warning."""

import configparser
import logging
import netrc
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fer_lightning.runtime.errors import UserError, first_line, without_login

log = logging.getLogger(__name__)


PUBLIC = "https://api.wandb.ai"

WANDB_START_SECONDS = 30
"""How long to wait for the W&B server before a run is kept offline."""

WANDB_FINISH_SECONDS = 15
"""How long to wait at the end of a run for W&B's upload: well within the 30 s that a stopped run has."""


def has_login() -> bool:
    """Whether W&B finds a key without a prompt: in the environment, or in the netrc file of ``wandb login``."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(server()).netloc
    for file in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        try:
            if netrc.netrc(os.path.expanduser(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def server() -> str:
    """The W&B server: of the environment, of the user's own settings (``wandb login --host``), or the public one.

    W&B also reads ``wandb/settings`` in the working directory, which anybody may have written: the key and the run
    would go where it says.
    """
    if "WANDB_BASE_URL" in os.environ:
        return os.environ["WANDB_BASE_URL"]
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.join("~", ".config", "wandb")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(os.path.join(os.path.expanduser(folder), "settings"), encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return PUBLIC
    return settings.get("default", "base_url", fallback=PUBLIC)


@contextmanager
def _of_the_user() -> Iterator[None]:
    """Name the server in the environment, which W&B reads before any file."""
    given = os.environ.get("WANDB_BASE_URL")
    os.environ["WANDB_BASE_URL"] = server()
    try:
        yield
    finally:
        if given is None:
            del os.environ["WANDB_BASE_URL"]


def mode() -> str:
    """The mode for ``wandb.init``: the user's ``WANDB_MODE``, but never online without a key, which would prompt."""
    wanted = os.environ.get("WANDB_MODE") or "online"
    if wanted == "dryrun" or (wanted not in ("offline", "disabled") and not has_login()):
        return "offline"
    return wanted


def start(mode: str, **arguments: Any) -> Any:
    """Start a W&B run; offline where the server cannot be reached or refuses.

    Raises:
        UserError: a variable of the environment has a value that W&B does not accept.
    """
    import wandb
    from pydantic import ValidationError
    from wandb.errors import UsageError

    def start(mode: Any) -> Any:
        return wandb.init(
            **arguments,
            mode=mode,
            reinit="finish_previous",
            settings=wandb.Settings(
                init_timeout=WANDB_START_SECONDS,
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", WANDB_FINISH_SECONDS)),
                finish_timeout_raises=True,
            ),
        )

    # Started here rather than by Lightning, whose offline=True would leave WANDB_MODE set for every later run of
    # this process, and so that a missing network or a wrong key is reported before the training.
    with _of_the_user():
        try:
            load_settings()
            return start(mode)
        except wandb.Error as error:
            failure = without_login(first_line(error))
            wandb.teardown()  # it holds the id
            try:
                load_settings()
                run = start("offline")
            except UsageError:
                raise UserError(f"logger=wandb: {failure}; correct that setting or variable WANDB_...") from None
            log.warning("W&B is not available (%s); the run is kept offline", failure)
            return run
        except ValidationError as error:
            found = error.errors()[0]
            variable = f"WANDB_{'_'.join(map(str, found['loc']))}".upper()
            raise UserError(
                f"logger=wandb: {variable}={found['input']}: {found['msg']}; correct that variable or unset it"
            ) from None


def load_settings() -> None:
    """Load W&B's settings from the environment and the user's own file.

    W&B loads them once, and would also read ``wandb/settings`` in the working directory, which anybody may have
    written: it can name a proxy, switch off the check of certificates, give another key, and list files to upload.
    """
    from wandb.sdk import wandb_setup

    here = Path.cwd()
    os.chdir(here.anchor)
    try:
        _ = wandb_setup.singleton().settings
    finally:
        os.chdir(here)


def upload_command(run: Any) -> str:
    """The ``wandb sync`` command that uploads a run from disk."""
    option = "" if run.offline else "--include-online "
    return f"wandb sync {option}{shlex.quote(str(Path(run.dir).parent))}"


@contextmanager
def only_warn(consequence: str) -> Iterator[None]:
    """Report a failure of W&B as a warning.

    Its errors are ``wandb.Error``, OSError (its service process has ended, the disk is full, a timeout), and those of
    its service's mailbox and messages. Anything else is a bug and is raised.
    """
    import wandb
    from google.protobuf.message import Error as MessageError  # type: ignore[import-untyped]
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import ServerResponseError

    of_the_service = (WandbApiFailedError, HandleAbandonedError, MailboxClosedError, ServerResponseError, MessageError)
    try:
        yield
    except (wandb.Error, OSError, *of_the_service) as error:
        log.warning("W&B failed (%s); %s", without_login(first_line(error)), consequence)


@contextmanager
def files_kept_in(folder: Path) -> Iterator[None]:
    """Stage the pictures of tables in the run folder, so that it can be synced later.

    W&B would write them to the user's home, which on a compute node may be read-only or missing.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
