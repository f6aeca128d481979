"""Functions and classes that a configuration names with ``_target_``."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from fer_lightning.runtime.errors import UserError, first_line
from fer_lightning.runtime.imports import TRUST


def target(
    node: Mapping[Any, Any] | DictConfig, key: str, recursive: bool = True, kind: type = object
) -> Callable[..., Any]:
    """What a node names, with the node's settings as arguments; to be called with keywords.

    Called here rather than by Hydra, which would hide the text of errors and wrap arguments in nodes.

    Args:
        node: has ``_target_``.
        key: of the node, for errors.
        recursive: also build the nodes below that have a target.
        kind: class of what it makes.

    Returns:
        A function. It raises UserError where the target does not take what is given to it, lacks a method, or makes
        another kind.

    Raises:
        UserError: the target cannot be imported.
    """
    given = f"{key}._target_={node['_target_']}"
    try:
        build: functools.partial[Any] = instantiate(node, _partial_=True, _recursive_=recursive)
    except InstantiationException as error:
        if "locating target" not in str(error):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"{given}: cannot be imported ({first_line(cause)}); check the name, and that the folder of its module is "
            f"on PYTHONPATH, or {TRUST} names each module of the folder you start in"
        ) from error

    def call(**arguments: Any) -> Any:
        try:
            inspect.signature(build.func).bind(*build.args, **{**build.keywords, **arguments})
        except TypeError as error:
            raise UserError(
                f"{given}: cannot be used there ({error}); name one that takes "
                f"{', '.join(arguments) or 'the settings beside it'}, such as a file of conf/ does"
            ) from None
        if inspect.isabstract(build.func):
            missing = ", ".join(sorted(vars(build.func)["__abstractmethods__"]))
            raise UserError(f"{given}: has no method {missing}; define it")
        made = build(**arguments)
        if not isinstance(made, kind):
            raise UserError(
                f"{given}: makes a {type(made).__name__}, where a {kind.__module__}.{kind.__name__} is needed; "
                "derive it from that class"
            )
        return made

    return call
