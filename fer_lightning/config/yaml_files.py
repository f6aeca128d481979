"""YAML of unknown origin, read in bounded time: aliases cannot multiply, and any damage is a ``YAMLError``."""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from yaml import MappingNode, MarkedYAMLError, Node, ScalarNode, YAMLError

from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime.errors import UserError, one_line
from fer_lightning.runtime.files import check_characters, read_bytes

MAX_BYTES = 200_000
"""Size of a configuration file; this project's own are below 5,000 bytes."""

MAX_VALUES = 5_000
"""Values of a file with all its aliases written out."""


MAX_DEPTH = 30

MAX_DIGITS = 100
"""Characters of a whole number; one of 309 digits is no float, and no setting needs 20."""


class _BoundedLoader(get_yaml_loader()):  # type: ignore[misc]  # a base that is made at run time
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise YAMLError(f"its lists and mappings are nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Node, deep: bool = False) -> Any:
        content = super().construct_mapping(node, deep)
        for key in content:
            if not isinstance(key, str):
                raise YAMLError(f"{key}: a key must be a word")
        return content

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return self.construct_document(node)


def parse(text: str, name: str) -> Any:
    """The content of a YAML document as plain Python.

    Args:
        text: the document.
        name: of the file, for errors.

    Raises:
        YAMLError: it is not YAML, or with aliases it has more than ``MAX_VALUES`` values.
    """
    try:
        loader = _BoundedLoader(text)
        loader.name = name
        try:
            content = loader.get_single_data()
            check_characters(text, content)
            return content
        finally:
            loader.dispose()
    except Exception as error:  # !!int x, !!timestamp 0 and so on each raise another type
        raise YAMLError(f"{name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What is wrong and where, without the line itself: a report that others read repeats it."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, MarkedYAMLError) and error.problem and mark is not None:
        return f"{shortened(' '.join(error.problem.split()), 200)} (line {mark.line + 1}, column {mark.column + 1})"
    return shortened(one_line(error), 300)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file as plain Python: a dictionary (empty for an empty file) or a list.

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read, or holds anything else.
    """
    return copy.deepcopy(_read(path)[0])


def compose_file(path: Path, chosen: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A file of a group in ``conf/`` with the files in its ``defaults``, without Hydra; interpolations unresolved.

    Args:
        path: the file.
        chosen: choices of its subgroups, in place of its own.
    """
    content: dict[str, Any] = read_yaml(path)
    composed: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, str):  # another file of the group, or of its folder _base
            composed = _merged(composed, compose_file(path.parent / f"{entry}.yaml", chosen))
            continue
        ((group, default),) = entry.items()
        name, folder = subgroup(path, group)
        choice = (chosen or {}).get(name, default)
        if choice:
            composed[name] = compose_file(folder / f"{choice}.yaml")
    return _merged(composed, content)


def subgroup(path: Path, entry: str) -> tuple[str, Path]:
    """Name and folder of the subgroup that an entry of a file's ``defaults`` chooses from.

    Args:
        path: the file. One in ``_base`` chooses from the subgroups of the group, which it gives by their whole names.
        entry: such as ``sampler``, ``override sampler`` or ``/imbalance/sampler@PACKAGE``.
    """
    name = entry.removeprefix("override ").partition("@")[0].rpartition("/")[2]
    group = path.parent.parent if path.parent.name == "_base" else path.parent
    return name, group / name


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _read(path: Path) -> tuple[Any, str]:
    """The content of a YAML file, not to be changed, and its text."""
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8")
        if text.startswith("\ufeff"):  # Hydra would not see a "# @package" behind it
            raise UserError(f"{path}: begins with a byte order mark; save it as UTF-8 without one")
        content = _parse_once(text, str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except YAMLError as error:
        raise UserError(str(error)) from None
    if not isinstance(content, dict | list | None):
        raise UserError(f"{path}: must hold keys and values")
    return {} if content is None else content, text


# A start composes the configuration twice, from the same files.
_parse_once = functools.lru_cache(maxsize=256)(parse)


class BoundedFileSource(FileConfigSource):
    """Hydra's folder of configuration files, which reads them with ``parse``."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.exists():
            raise ConfigLoadError(f"Config not found : {file}")
        content, text = _read(file)
        if not isinstance(content, dict):
            raise UserError(f"{file}: must hold keys and values, not a list")
        try:
            header = ConfigSource._get_header_dict(text[:512])
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None
        config = OmegaConf.create(content)
        assert isinstance(config, DictConfig)
        return ConfigResult(config=config, path=f"{self.scheme()}://{self.path}", provider=self.provider, header=header)


# Hydra refuses another name for the scheme "file", in the worker processes of hydra/launcher=parallel.
BoundedFileSource.__name__ = FileConfigSource.__name__


def _count(node: Node, counted: dict[int, int]) -> int:
    """How many values a node expands to with all aliases written out.

    Raises:
        YAMLError: more than ``MAX_VALUES``, a node that holds itself, or a whole number of more than ``MAX_DIGITS``.
    """
    if isinstance(node, ScalarNode):
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
            raise YAMLError(f"a whole number has {len(node.value):,} digits, and at most {MAX_DIGITS} are read")
        return 1
    if id(node) in counted:
        if counted[id(node)] == 0:
            raise YAMLError("a value holds itself")
        return counted[id(node)]
    counted[id(node)] = 0
    is_mapping = isinstance(node, MappingNode)
    children = [child for pair in node.value for child in pair] if is_mapping else node.value
    total = 1
    for child in children:
        total += _count(child, counted)
        if total > MAX_VALUES:
            raise YAMLError(f"has more than {MAX_VALUES} values, with its aliases written out")
    counted[id(node)] = total
    return total
