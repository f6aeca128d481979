"""What each method changes, and which samplers, mixes and second stages it can be combined with.

Nothing here is a list of methods: the files in ``conf/imbalance`` are composed without Hydra, and
``imbalance_rules.refuse_double_corrections`` decides.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from fer_lightning.config.imbalance_rules import refuse_corrected_first_stage, refuse_double_corrections
from fer_lightning.config.safety import CONF_DIR
from fer_lightning.config.settings import is_part_of
from fer_lightning.config.yaml_files import compose_file
from fer_lightning.runtime.errors import UserError

FOLDER = CONF_DIR / "imbalance"


class Combinations(NamedTuple):
    """What a method can be combined with.

    Attributes:
        sampler: choices of ``imbalance/sampler`` that are accepted; None where the method has a sampler of its own.
        mix: choices of ``imbalance/mix`` that are accepted.
        second_stage: methods that can start from a run of this one (``imbalance.first_stage``); None where the method
            has a second stage of its own.
        refused: each choice that is refused, with the reason.
    """

    sampler: tuple[str, ...] | None
    mix: tuple[str, ...]
    second_stage: tuple[str, ...] | None
    refused: Mapping[str, str]


def choices(group: str) -> tuple[str, ...]:
    """Names of the files of ``imbalance/<group>``, or of all methods for an empty name."""
    return tuple(sorted(path.stem for path in (FOLDER / group).glob("*.yaml")))


@functools.cache
def compose_method(name: str, **chosen: str) -> DictConfig:
    """The ``imbalance`` group of a method with its defaults, interpolations unresolved.

    Args:
        name: of the method.
        chosen: ``sampler`` or ``mix``, another choice than the method's.
    """
    return OmegaConf.create(compose_file(FOLDER / f"{name}.yaml", chosen))


def weights_by_hand(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The class weights that a run has in place of its method's.

    Args:
        method: the run's ``imbalance.name``; may be a method of the user's.
        settings: the run's configuration, flat, with values as they are or as text.
    """
    power = compose_method(method).loss.get("power") if method in choices("") else None
    own = (("imbalance.loss.power", str(power)), ("imbalance.loss.power", "None"), ("imbalance.loss.weights", "None"))
    return {
        key: value
        for key, value in settings.items()
        if is_part_of(key, ("imbalance.loss.power", "imbalance.loss.weights")) and (key, str(value)) not in own
    }


def stage(name: str) -> str:
    """Where a method acts: loss, sampler, data, optimizer, second stage, or after training; ``-`` for the baseline."""
    method, plain = compose_method(name), compose_method("none")
    if method.loss._target_.endswith("Sharpness"):
        return "optimizer"
    for key, words in (("second_stage", "second stage"), ("adjust", "after training"), ("mix", "data")):
        if method.get(key):
            return words
    return next((key for key in ("sampler", "loss") if method[key] != plain[key]), "-")


@functools.cache
def second_stages() -> tuple[str, ...]:
    """The methods that can start from the run of another."""
    return tuple(name for name in choices("") if "first_stage" in compose_method(name))


@functools.cache
def combinations(name: str) -> Combinations:
    """What a method can be combined with, each choice alone and with the method's other defaults."""
    method, refused = compose_method(name), {}
    accepted: dict[str, tuple[str, ...]] = {}
    for group in ("sampler", "mix"):
        options = choices(group)
        for choice in options:
            try:
                refuse_double_corrections(compose_method(name, **{group: choice}))
            except UserError as error:
                refused[f"imbalance/{group}={choice}"] = str(error)
        accepted[group] = tuple(choice for choice in options if f"imbalance/{group}={choice}" not in refused)
    second: list[str] = []
    for other in second_stages():
        try:
            _check_first_stage(method, compose_method(other))
            second.append(other)
        except UserError as error:
            refused[f"imbalance={other} imbalance.first_stage=RUN"] = str(error)
    if name in second_stages():
        refused = {key: reason for key, reason in refused.items() if "first_stage" not in key}
    own_sampler = "TwoStageSampler" in method.sampler._target_
    if own_sampler:
        refused = {key: reason for key, reason in refused.items() if "/sampler=" not in key}
    return Combinations(
        None if own_sampler else accepted["sampler"],
        accepted["mix"],
        None if name in second_stages() else tuple(second),
        refused,
    )


def _check_first_stage(first: DictConfig, second: DictConfig) -> None:
    """As ``training.first_stage`` does with the configuration of a finished run."""
    scales = [_cosine_scale(method) for method in (first, second)]
    if scales[0] != scales[1]:
        was, now = ("null" if scale is None else scale for scale in scales)
        raise UserError(f"imbalance={second.name}: model.head.cosine_scale of {first.name} is {was}, here it is {now}")
    parts = {key: first[key] for key in ("loss", "sampler", "mix") if key in first}
    merged = OmegaConf.merge(second, parts)
    refuse_corrected_first_stage(merged, f"imbalance={second.name}")  # type: ignore[arg-type]


def _cosine_scale(method: DictConfig) -> float | None:
    return method.loss.scale if "cosine_scale" in method else None


def in_words(accepted: Sequence[str] | None, options: Sequence[str]) -> str:
    """A choice among options in few words: ``any``, ``all but cmo``, ``instance``, ``own`` for None."""
    if accepted is None:
        return "own"
    missing = [option for option in options if option not in accepted]
    if not missing:
        return "any"
    if not accepted:
        return "none"
    return f"all but {', '.join(missing)}" if len(missing) <= len(accepted) else ", ".join(accepted)
