"""Secrets of the environment: in no configuration, and so in no folder's name, file, log or dashboard."""

import functools
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from fer_lightning.runtime.errors import UserError

_NAMES = re.compile(
    r"KEY(?!BOARD|MAP)|TOKEN(?!IZER)|SECRET|PASSW|PASSPHRASE|PASS(?=_|$)|CREDENTIAL|CREDS|COOKIE|JWT|BEARER|WEBHOOK"
    r"|PRIVATE|AUTH(?!OR)|SESSION_?ID|(^|_|-)(PWD|PAT|DSN|SIG|SIGNATURE|OTP|PIN|PIN_CODE|SALT)$",
    re.IGNORECASE,
)
"""What the name of an environment variable contains whose value is a secret."""

_ASSIGNMENTS = re.compile(r"""(?<![\w.-])([\w.-]+)["']?\s*[=:](?=\s*["']?([^\s"'&;,]+))""")
"""Key and value within a value: the query of an address, the settings of a database, JSON."""

_SCHEMES = re.compile(r"\b(?:Bearer|Basic) +([\w.~+/=-]+)")
"""The credentials of a header."""

_SHORTEST = 8
"""Characters; shorter values, such as ``true``, would be found in any text."""

WANDB_KEY = "WANDB_API_KEY"


def is_secret(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return bool(_NAMES.search(variable))


def environment_secrets() -> list[tuple[str, str]]:
    """Name and value of each secret of the environment; the path of a key file is not one.

    Of one with several lines, as of a key in PEM form, each line is one; of the address of a database or proxy, its
    login and the tokens of its query; also those of settings (``host=db password=...``), of JSON and of a header.
    """
    pairs = [(name, line.strip()) for name, value in os.environ.items() for line in _secrets(name, value)]
    secrets = [(name, value) for name, value in pairs if len(value) >= _SHORTEST and not os.path.exists(value)]
    return [(name, value) for name, value in secrets if value not in _own_words()]


def _secrets(name: str, value: str) -> list[str]:
    if is_secret(name):
        return [value, *value.splitlines()]
    logins = re.findall(r"(://(?:[^/@\s:]*:)?([^/@\s]+)@)", value)
    tokens = [text for key, text in _ASSIGNMENTS.findall(value) if is_secret(key)]
    return [*(part for login in logins for part in login), *tokens, *_SCHEMES.findall(value)]


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


def check_variables(prefix: str) -> None:
    """Check that a dashboard uploads no secret from its own variables, such as ``WANDB_NOTES``.

    Args:
        prefix: of their names. Secrets among them, and the addresses of servers, are not uploaded.

    Raises:
        UserError: naming the variable.
    """
    check_secrets(
        (name, text)
        for name, value in os.environ.items()
        if name.startswith(prefix) and not is_secret(name) and "://" not in value
        for text in (value, *_texts_in_json(value))
    )


def _texts_in_json(value: str) -> list[str]:
    """The texts in JSON, such as ``MLFLOW_RUN_CONTEXT``, without its escapes; none in anything else."""
    try:
        parts = [json.loads(value)]
    except (ValueError, RecursionError):
        return []
    texts = []
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        else:
            texts.append(str(part))
    return texts
