"""Interpolations of a configuration (``${...}``): which ones may be written, and how far they may expand."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning.config.secrets import is_secret
from fer_lightning.runtime.errors import UserError

RESOLVERS = ("now", "hydra", "oc.env", "oc.select", "python_version")
"""OmegaConf's and Hydra's functions that cannot create a configuration node, unlike ``oc.create``."""

VARIABLES = (
    *("HOME", "USER", "LOGNAME", "HOSTNAME", "TMPDIR", "SCRATCH", "WORK", "XDG_CACHE_HOME"),
    *("FER2013_PATH", "FERPLUS_VOTES", "FER_WEIGHTS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_TASK_ID", "SLURM_CPUS_PER_TASK", "SLURM_TMPDIR"),
)
"""Environment variables that a file may read with ``${oc.env:NAME}``; on the command line all but secrets."""

_HARMLESS = re.compile(rf"\$\{{(?:[^${{}}:]*|(?:{'|'.join(map(re.escape, RESOLVERS))}):[^${{}}]*)\}}")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:([^,}]*)")
_LONGEST = 2000
"""Characters of a text with interpolations; parsing takes longer than linear time."""
_PLACEHOLDER = "\ue000"
"""Stands for an inner interpolation while the outer one is examined, so that it cannot complete a function's name."""

_MOST = 200
"""Interpolations that are resolved for one configuration; this project's own resolves some 50."""


def check_interpolation(key: str, text: str, typed: bool) -> None:
    """Refuse functions that could make anything of a text, and all but harmless environment variables.

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
        raise UserError(f"{given}: may expand to anything; ${{...}} may hold only keys and {names}")
    for name in map(str.strip, _ENVIRONMENT.findall(text)):
        if not re.fullmatch(r"\w+", name) or is_secret(name) or not (typed or name in VARIABLES):
            raise UserError(
                f"{given}: may not read this environment variable; a file may read "
                f"{', '.join(VARIABLES)}; the command line may read others, but no secrets"
            )


@contextmanager
def bounded() -> Iterator[None]:
    """Resolve a bounded number of interpolations within the block: a few lines can expand to billions of values.

    Raises:
        UserError: there was one too many, also where the code in the block has caught OmegaConf's error.
    """
    resolve, count, exceeded = Container.resolve_parse_tree, itertools.count(1), False

    def counted(self: Container, *arguments: Any, **keywords: Any) -> Any:
        nonlocal exceeded
        if exceeded or next(count) > _MOST:
            exceeded = True
            raise UserError("one too many")
        return resolve(self, *arguments, **keywords)

    Container.resolve_parse_tree = counted  # type: ignore[method-assign]  # OmegaConf has no hook
    try:
        yield
    finally:
        Container.resolve_parse_tree = resolve  # type: ignore[method-assign]  # as above
        if exceeded:
            raise UserError(f"configuration: its ${{...}} expand to more than {_MOST} values; remove those that repeat")


@contextmanager
def as_hydras(config: DictConfig) -> Iterator[None]:
    """As ``bounded``; and ``${hydra:...}`` reads ``config`` within the block, as when Hydra runs it.

    Args:
        config: composed, with the ``hydra`` node.
    """
    hydra = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, config  # type: ignore[assignment]  # typed as HydraConf
    try:
        with bounded():
            yield
    finally:
        hydra.cfg = before


def check_expansion(config: DictConfig) -> None:
    """Check that all of a configuration can be resolved in bounded time; what cannot be resolved yet is left out.

    Raises:
        UserError: it cannot.
    """
    with bounded():
        _resolve_all(config)


def _resolve_all(node: Any) -> None:
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        try:
            if isinstance(child, Node) and child._is_interpolation():
                child = child._maybe_dereference_node()
                if isinstance(child, Container):
                    OmegaConf.to_container(child, resolve=True)
            elif isinstance(child, Container) and not (child._is_none() or child._is_missing()):
                _resolve_all(child)
        except OmegaConfBaseException:
            continue
