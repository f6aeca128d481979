"""One-line messages for the errors of Hydra, OmegaConf and YAML: what was given, what is accepted."""

import difflib
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from fer_lightning.config.safety import CONF_DIR
from fer_lightning.runtime.errors import UserError, first_line, one_line

METHOD_KEYS = {
    "imbalance/sampler": "this method has a sampler of its own",
    "imbalance/mix": "this method has mixing of its own",
    "imbalance.mix": "this run mixes no images; choose imbalance/mix=mixup, remix or cmo first",
    "imbalance.mix.off_epochs": "is given as a share of the epochs; use imbalance.mix.off_share=0.015 for 3 of 200",
    "imbalance.first_stage": "only methods of two stages, such as crt, and adjustments start from a checkpoint",
    "imbalance.second_stage": "only methods of two stages, such as crt, have a second stage",
    "imbalance.adjust": "only tau_norm and posthoc_logit_adjusted adjust a trained model",
}
"""Keys that only some methods have, or that another key replaces, and why the chosen method does not have them."""

KINDS = {"integer": "a whole number", "float": "a number", "bool": "true or false"}
"""What the types that OmegaConf names accept."""


def explain(error: Exception, overrides: Sequence[str] | None = None) -> str:
    """Describe an error of Hydra, OmegaConf or YAML in one line: what was given, what is accepted.

    Args:
        error: what they raised.
        overrides: that were composed; None for those of the command line.
    """
    overrides = sys.argv[1:] if overrides is None else overrides
    if not str(error) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, overrides)
    if isinstance(error, RecursionError):
        return "configuration: circular interpolation, or keys that are nested too deeply"
    if isinstance(error, YAMLError):
        return one_line(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        hint = did_you_mean(choice, list(error.options))
        other = "; for another network of timm give model=resnet18 model.name=resnet50" if group == "model" else ""
        return f"{group}={choice}: no such choice{hint}; {group} is one of: {', '.join(error.options)}{other}"
    if isinstance(error, OverrideParseException):
        if "=" not in error.override and not error.override.startswith("~"):
            return f"{error.override}: must be key=value, such as {as_setting(error.override)}"
        quoted = "put special characters in their own quotes, such as 'data.path=\"a (1).csv\"'"
        return f"{error.override}: cannot be read as key=value ({first_line(error)}); {quoted}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: is missing and has no default"
    if gone := re.match(r"Additional config directory '(.+)' not found", str(error)):
        return f"--config-dir={gone[1]}: no such folder; give one with groups as in conf/, such as imbalance/"
    if "Ambiguous value for argument" in str(error):
        return f"{first_line(error)}: to run them all add -m, for one list give [a,b]"
    twice = re.match(r"Multiple values for ([\w/]+)", str(error))
    added = re.search(r"Could not append to config\. An item is already at '(.+)'", str(error))
    for key in (found[1] for found in (twice, added) if found):
        if any(word.startswith((f"+{key}=", f"+{key}@")) for word in overrides):
            return f"+{key}: {key} has a value already; leave out the +, as in {key}=..."
    merging = re.search(r"Error merging override (.+)", first_line(error))
    if merging and error.__cause__:
        return f"{merging.group(1)}: {first_line(error.__cause__)}"
    wrong = re.match(r"Value '(.*?)'.* (?:could not be converted to|is not a valid) (\w+)", first_line(error))
    if wrong and isinstance(error, OmegaConfBaseException) and wrong[2].lower() in KINDS:
        return f"{error.full_key}={wrong[1]}: must be {KINDS[wrong[2].lower()]}"
    unknown = re.search(r"Could not override '(.+?)'", str(error))
    if unknown or isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(unknown.group(1) if unknown else str(getattr(error, "full_key", "")), overrides)
    if "HydraConfig was not set" in str(error):
        key = getattr(error, "full_key", None) or "configuration"
        return (
            f"{key}: ${{hydra:...}} has no value yet where this is read; give the text itself, or use ${{now:%Y-%m-%d}}"
        )
    if isinstance(error, OmegaConfBaseException):
        wrapped = re.fullmatch("UserError raised while resolving interpolation: (.+)", first_line(error))
        return wrapped.group(1) if wrapped else f"{error.full_key or 'configuration'}: {first_line(error)}"
    return first_line(error)


def did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    """`` (did you mean X?)`` if a known word is close, else the empty string."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {prefix}{close[0]}?)" if close and not word.startswith(f"{close[0]}.") else ""


def as_setting(word: str) -> str:
    """A setting as an example, of the group that has such a choice or key."""
    name = word.lstrip("-")
    groups = sorted(path.parent.name for path in CONF_DIR.glob("*/*.yaml") if path.stem == name)
    choices = sorted(path.stem for path in (CONF_DIR / name).glob("*.yaml")) if name.isidentifier() else []
    return f"{groups[0]}={name}" if groups else f"{name}={choices[0]}" if choices else "optim.lr=0.001"


def similar_key(key: str, known: Sequence[str]) -> str:
    """`` (did you mean X?)`` if a known key is close, else the empty string.

    Close are, in this order: a similar spelling in the same group, one that the last part abbreviates to
    (``optim.learning_rate``), the same last part elsewhere (``lr``), one that it is a word of (``epochs``).
    """
    parent, _, leaf = key.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in known}
    siblings = {leaves[name]: name for name in known if name == f"{parent}.{leaves[name]}"}
    spelt = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    short = "".join(word[:1] for word in leaf.split("_"))
    close = (
        [siblings[name] for name in (*spelt, short) if name in siblings]
        or [name for name in known if leaves[name] == leaf]
        or [name for name in known if leaf in leaves[name].split("_")]
    )
    return f" (did you mean {min(close, key=len)}?)" if close else did_you_mean(key, list(known))


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Describe an unknown key and what is accepted there, given the groups chosen on the command line."""
    groups = "|".join(path.name for path in CONF_DIR.iterdir() if path.is_dir())
    chosen = [re.sub(",.*", "", word) for word in overrides if re.fullmatch(rf"({groups})(/\w+)?=[\w,]+", word)]
    chosen = [word for word in chosen if not word.startswith(f"{key}=")]
    chosen += [f"hydra.searchpath={json.dumps([str(folder)])}" for folder in _own_folders(overrides)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", overrides=chosen, return_hydra_config=key.startswith("hydra."))
    except (UserError, HydraException, OmegaConfBaseException, YAMLError):  # of a chosen file of the user's own
        return f"{key}: no such key; --cfg job lists all"
    known = list(_leaves(cfg))
    for part, reason in METHOD_KEYS.items():
        if (key == part or key.startswith(f"{part}.")) and part not in known:
            return f"{key}: {reason}"
    if key in known:
        return f"{key}: was removed, or got keys that it does not have; leave it and set single keys below it"
    parent, _, leaf = key.rpartition(".")
    if parent in known and not any(name.startswith(f"{parent}.") for name in known):
        whole = f"{parent}={{{leaf}: ...}}" if OmegaConf.select(cfg, parent) is None else f"{parent}=..."
        return f"{key}: {parent} has no keys of its own; give it whole, as in {whole}"
    siblings = [name for name in known if parent and name.rpartition(".")[0] == parent and "._" not in name]
    listed = f"; {parent} has: {', '.join(name.rpartition('.')[2] for name in siblings)}" if siblings else ""
    return f"{key}: no such key{similar_key(key, known)}{listed or '; --cfg job lists all'}"


def _own_folders(words: Sequence[str]) -> list[Path]:
    """The folder of ``--config-dir`` of a command line, where it is given."""
    given = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    given += [after for word, after in itertools.pairwise(words) if word in ("--config-dir", "-cd")]
    return [Path(folder).absolute() for folder in given[:1]]


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _leaves(child, f"{prefix}{key}.")
