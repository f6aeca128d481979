"""Functions and classes that a configuration names with ``_target_``."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from fer_lightning.runtime.errors import UserError


def target(node: Mapping[Any, Any] | DictConfig, key: str, recursive: bool = True) -> Callable[..., Any]:
    """What a node names, with the node's settings as arguments; to be called with keywords.

    Called here rather than by Hydra, which would hide the text of errors and wrap arguments in nodes.

    Args:
        node: has ``_target_``.
        key: of the node, for errors.
        recursive: also build the nodes below that have a target.

    Returns:
        A function. It raises UserError where the target does not take what is given to it.
    """
    build: functools.partial[Any] = instantiate(node, _partial_=True, _recursive_=recursive)

    def call(**arguments: Any) -> Any:
        try:
            inspect.signature(build.func).bind(*build.args, **{**build.keywords, **arguments})
        except TypeError as error:
            raise UserError(
                f"{key}._target_={node['_target_']}: cannot be used there ({error}); name one that takes "
                f"{', '.join(arguments) or 'the settings beside it'}, such as a file of conf/ does"
            ) from None
        return build(**arguments)

    return call
