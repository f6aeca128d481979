"""Secrets of the environment: in no configuration, and so in no folder's name, file, log or dashboard."""

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from fer_lightning.runtime.errors import UserError

_NAMES = re.compile(
    r"KEY(?!BOARD|MAP)|TOKEN(?!IZER)|SECRET|PASSW|PASSPHRASE|PASS(?=_|$)|CREDENTIAL|_(PWD|PAT)$", re.IGNORECASE
)
"""What the name of an environment variable contains whose value is a secret."""

_SHORTEST = 8
"""Characters; shorter values, such as ``true``, would be found in any text."""

WANDB_KEY = "WANDB_API_KEY"


def is_secret(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return bool(_NAMES.search(variable))


def environment_secrets() -> list[tuple[str, str]]:
    """Name and value of each secret of the environment; the path of a key file is not one.

    Of the address of a database or proxy, its password and the tokens of its query are secrets.
    """
    pairs = [(name, value.strip()) for name, value in os.environ.items() if is_secret(name)]
    pairs += [(name, part) for name, value in os.environ.items() for part in _secrets_of_address(value)]
    secrets = [(name, value) for name, value in pairs if len(value) >= _SHORTEST and not os.path.exists(value)]
    return [(name, value) for name, value in secrets if value not in _own_words()]


def _secrets_of_address(text: str) -> list[str]:
    """The login (``://user:password@``), its password, and the parameters of the query that are named like secrets."""
    logins = re.findall(r"(://[^/@\s:]*:([^/@\s]+)@)", text)
    tokens = [value for name, value in re.findall(r"[?&;]([\w.-]+)=([^&;\s]+)", text) if is_secret(name)]
    return [*(part for login in logins for part in login), *tokens]


@functools.cache
def _own_words() -> frozenset[str]:
    """The words of this project's own configuration, such as ``undersample``: a secret that is one would be found
    in every run.
    """
    package = Path(__file__).parents[1]
    files = [file for folder in (package, package.parent) for file in (folder / "conf").rglob("*.yaml")]
    return frozenset(word for file in files for word in (file.stem, *re.findall(r"\w+", file.read_text())))


def check_secrets(texts: Iterable[tuple[str, str]]) -> None:
    """Check that no text holds a secret of the environment, or names the variable of the W&B key.

    Args:
        texts: each with the name of its place.

    Raises:
        UserError: naming the place and the variable, not the value.
    """
    secrets = environment_secrets()
    for where, text in texts:
        name = next((name for name, value in secrets if value in text), None)
        if name is None and WANDB_KEY in text.upper():
            name = WANDB_KEY
        if name is not None:
            raise UserError(
                f"{without_secrets(where)}: holds the secret {name}, or its name, which would be written to the run "
                f"folder; set it in the environment only (export {name}=...)"
                + (", or use wandb login" if name == WANDB_KEY else "")
            )


def without_secrets(text: str) -> str:
    """A text with each secret of the environment replaced by ``...``."""
    for _, value in environment_secrets():
        text = text.replace(value, "...")
    return text
