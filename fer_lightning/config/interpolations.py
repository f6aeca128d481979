"""Interpolations of a configuration (``${...}``): which ones may be written, and how far they may expand."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf.base import Container

from fer_lightning.config.secrets import is_secret
from fer_lightning.runtime.errors import UserError

RESOLVERS = ("now", "hydra", "oc.env", "oc.select", "python_version")
"""OmegaConf's and Hydra's functions that cannot create a configuration node, unlike ``oc.create``."""

VARIABLES = (
    *("HOME", "USER", "LOGNAME", "HOSTNAME", "TMPDIR", "SCRATCH", "WORK", "XDG_CACHE_HOME"),
    *("FER2013_PATH", "FERPLUS_VOTES", "FER_WEIGHTS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_TASK_ID", "SLURM_CPUS_PER_TASK", "SLURM_TMPDIR"),
)
"""Environment variables that a file may read with ``${oc.env:NAME}``; the command line may read others, no secrets."""

_HARMLESS = re.compile(rf"\$\{{(?:[^${{}}:]*|(?:{'|'.join(map(re.escape, RESOLVERS))}):[^${{}}]*)\}}")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,}]*)")
_LONGEST = 2000
"""Characters of a text with interpolations; parsing takes longer than linear time."""
_PLACEHOLDER = "\ue000"
"""Stands for an inner interpolation while the outer one is examined, so that it cannot complete a function's name."""

_MOST = 1000
"""Interpolations that are resolved for one configuration; this project's own resolves some 50."""


def check_interpolation(key: str, text: str, typed: bool) -> None:
    """Refuse functions that could make anything of a text, and variables of the environment but for harmless ones.

    Args:
        key: where the text is.
        text: as it is written.
        typed: on the command line.

    Raises:
        UserError: naming the key.
    """
    if "${" not in text:
        return
    given, rest = f"{key}={text[:80]}", text
    if len(text) > _LONGEST or _PLACEHOLDER in text:
        raise UserError(f"{given}...: has {len(text)} characters; a text with ${{...}} may have {_LONGEST}")
    while "${" in rest and rest != (shorter := _HARMLESS.sub(_PLACEHOLDER, rest)):
        rest = shorter
    if "${" in rest:
        names = ", ".join(RESOLVERS)
        raise UserError(f"{given}: could stand for anything; ${{...}} may hold only keys and {names}")
    for name in map(str.strip, _ENVIRONMENT.findall(text)):
        if not re.fullmatch(r"\w+", name) or is_secret(name) or not (typed or name in VARIABLES):
            raise UserError(
                f"{given}: may not read this environment variable; a file may read "
                f"{', '.join(VARIABLES)}; the command line may read others, but no secrets"
            )


@contextmanager
def bounded() -> Iterator[None]:
    """Resolve a bounded number of interpolations within the block: a few lines can stand for billions of values.

    Raises:
        UserError: at the first one too many.
    """
    resolve, count = Container.resolve_parse_tree, itertools.count(1)

    def counted(self: Container, *arguments: Any, **keywords: Any) -> Any:
        if next(count) > _MOST:
            raise UserError(f"configuration: its ${{...}} stand for more than {_MOST} values; remove those that repeat")
        return resolve(self, *arguments, **keywords)

    Container.resolve_parse_tree = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Container.resolve_parse_tree = resolve  # type: ignore[method-assign]
