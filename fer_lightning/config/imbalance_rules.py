"""The rules of the ``imbalance`` group, checked before anything heavy is imported by ``rules.check_rules``.

The losses, samplers and adjustments do not check again what is checked here.
"""

import math
from pathlib import Path

from omegaconf import DictConfig

from fer_lightning.runtime.errors import UserError, require


def imbalance_rules(cfg: DictConfig) -> None:
    """Refuse settings out of range, two corrections at once, and what a method cannot do in this run.

    Args:
        cfg: the composed run.

    Raises:
        UserError: with the key, the value given and what is accepted.
    """
    method = cfg.imbalance
    loss, sampler = method.loss, method.sampler
    for key in ("per_class", "num_samples"):  # null in the files, which does not show their type
        count = sampler.get(key)
        is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        require(count is None or is_count, f"imbalance.sampler.{key}", count, "must be a number of images, or null")
    gamma = loss.get("gamma", 0)
    accepted = "must be 0 or more"
    require(0 <= gamma < math.inf, "imbalance.loss.gamma", gamma, accepted)
    smoothing = loss.get("label_smoothing", 0)
    require(0 <= smoothing < 1, "imbalance.loss.label_smoothing", smoothing, "must be in [0, 1)")
    _weight_rules(loss)
    if loss._target_.endswith("Sharpness"):
        _sharpness_rules(cfg)
    refuse_double_corrections(method)
    _epoch_rules(cfg)
    _head_rules(cfg)
    if method.get("second_stage"):
        _second_stage_rules(cfg)
    if method.get("adjust"):
        _adjust_rules(cfg)


def _weight_rules(loss: DictConfig) -> None:
    """Weights by hand; the names of the classes are checked when the data are read."""
    power, weights = loss.get("power"), loss.get("weights")
    is_number = isinstance(power, int | float) and not isinstance(power, bool) and 0 <= power < math.inf
    require(power is None or is_number, "imbalance.loss.power", power, "must be 0 or more, or null")
    by_name = isinstance(weights, DictConfig) and len(weights) > 0
    accepted = "must name classes with their weights, such as {disgust: 5}, or be null"
    require(weights is None or by_name, "imbalance.loss.weights", weights, accepted)
    if power is not None and weights is not None:
        raise UserError(
            f"imbalance.loss.power={power}: imbalance.loss.weights is given too; use one of them, such as the weights "
            "with imbalance.loss.power=null"
        )
    by_hand = "weights" if weights is not None else "power"
    if loss.get("alpha", "none") != "none" and loss.get(by_hand) is not None:
        raise UserError(
            f"imbalance.loss.alpha={loss.alpha}: imbalance.loss.{by_hand} is given too, in its place; use one of them, "
            f"such as imbalance.loss.{by_hand} with imbalance.loss.alpha=none"
        )


def _sharpness_rules(cfg: DictConfig) -> None:
    name, optim, trainer = f"imbalance={cfg.imbalance.name}", cfg.optim, cfg.trainer
    if optim.sam_rho is not None:
        raise UserError(f"optim.sam_rho={optim.sam_rho}: {name} has a radius of its own, imbalance.loss.rho; use null")
    remedy = f"{name} makes three passes over each batch; use 1"
    steps = trainer.accumulate_grad_batches
    require(steps == 1, "trainer.accumulate_grad_batches", steps, remedy)


def refuse_double_corrections(method: DictConfig) -> None:
    """Refuse two corrections at once: each alone aims at balanced classes, two favour the rare ones.

    Args:
        method: the ``imbalance`` group.

    Raises:
        UserError: naming two that meet.
    """
    name, (loss, sampler, pasted) = method.name, _corrections(method)
    adjusted = None
    if _adjusts(method):
        adjusted = ("an adjustment after training", "imbalance=none with the same loss and sampler")
    pairs = ((sampler, loss), (sampler, pasted), (loss, adjusted), (sampler, adjusted), (pasted, adjusted))
    for one, other in pairs:
        if one and other:
            raise UserError(
                f"imbalance={name}: {one[0]} and {other[0]} correct twice; keep one, with {one[1]} or {other[1]}"
            )


def refuse_corrected_first_stage(method: DictConfig, given: str) -> None:
    """Refuse to adjust a model whose training favoured the rare classes already.

    Args:
        method: the ``imbalance`` group, with the loss, sampler and mixing of the first stage.
        given: how the first stage was given, for the error.

    Raises:
        UserError: naming what its training had.
    """
    if _adjusts(method) and (found := next(filter(None, _corrections(method)), None)):
        raise UserError(
            f"{given}: its training had {found[0]}, and an adjustment after training corrects again; give a first "
            "stage that favours no class, such as a run of imbalance=none"
        )


def _adjusts(method: DictConfig) -> bool:
    return bool(method.get("adjust")) and method.adjust.tau != 0


def _corrections(method: DictConfig) -> tuple[tuple[str, str] | None, ...]:
    """What in the loss, the sampler and the mixing favours rare classes, each with the way without it."""
    mix, pasted = method.get("mix"), None
    if mix and mix.get("weighted_alpha", 0) > 0:
        pasted = ("rectangles from rare classes", "imbalance.mix.weighted_alpha=0")
    return _loss_correction(method.loss), _sampler_correction(method.sampler), pasted


def _loss_correction(loss: DictConfig) -> tuple[str, str] | None:
    """What in the loss favours rare classes, and the way without it."""
    kind = loss._target_.rpartition(".")[2]
    if loss.get("weights"):
        return "class weights in the loss", "imbalance.loss.weights=null"
    if loss.get("power") is not None:
        return ("class weights in the loss", "imbalance.loss.power=0") if loss.power else None
    for key in ("weighting", "alpha"):
        if loss.get(key, "none") != "none":
            return "class weights in the loss", f"imbalance.loss.{key}=none"
    if kind == "WeightedBCE":
        return "class weights in the loss", "another loss, such as imbalance=focal"
    if kind == "ClassBalancedFocal" and loss.beta != 0:
        return "class weights in the loss", "imbalance.loss.beta=0"
    if kind == "LDAM" and loss.deferred_share > 0 and loss.beta != 0:
        return "deferred class weights in the loss", "imbalance.loss.deferred_share=0"
    if kind == "LogitAdjusted" and loss.tau != 0:
        return "class sizes in the loss", "imbalance.loss.tau=0"
    if kind == "VectorScaling" and (loss.tau != 0 or loss.gamma != 0):
        return "class sizes in the loss", "imbalance=none"
    return None


def _sampler_correction(sampler: DictConfig) -> tuple[str, str] | None:
    """Whether the sampler shows rare classes more often than they are, and the way without it."""
    kinds = ("UnderSampler", "ClassWeightedSampler", "ProgressiveSampler", "TwoStageSampler")
    if not sampler._target_.endswith(kinds) or sampler.get("power", 0) == 1:
        return None
    in_two_stages = sampler._target_.endswith("TwoStageSampler")
    return "a rebalancing sampler", "a method of one stage" if in_two_stages else "imbalance/sampler=instance"


def _epoch_rules(cfg: DictConfig) -> None:
    """A part that follows a schedule over the epochs must know their number."""
    method = cfg.imbalance
    parts = [part for part in ("loss", "sampler", "mix", "second_stage") if "epochs" in (method.get(part) or {})]
    trainer = cfg.trainer
    cuts = [(f"trainer.max_steps={trainer.max_steps}", trainer.max_steps != -1)]
    cuts += [(f"trainer.max_time={trainer.max_time}", trainer.max_time is not None)]
    cuts += [("callbacks=early_stopping", "early_stopping" in cfg.callbacks)]
    for given, cut in cuts:
        if parts and cut:
            raise UserError(
                f"{given}: imbalance.{parts[0]} depends on trainer.max_epochs, which this would cut short; "
                "give only trainer.max_epochs"
            )
    off = (method.get("mix") or {}).get("off_share", 0)
    require(0 <= off < 0.5, "imbalance.mix.off_share", off, "must be 0 or more and below 0.5")


def _head_rules(cfg: DictConfig) -> None:
    loss, scale = cfg.imbalance.loss, cfg.model.head.cosine_scale
    if loss._target_.endswith(("LDAM", "BalancingMargin", "GaussianClouded")):
        accepted = f"this loss has margins between cosines; it must be imbalance.loss.scale={loss.scale}"
        require(scale == loss.scale, "imbalance.cosine_scale", scale, accepted)


def _second_stage_rules(cfg: DictConfig) -> None:
    method = cfg.imbalance
    second = method.second_stage
    name = f"imbalance={method.name}"
    for key, share in (("second_stage", second.share), ("sampler", method.sampler.get("share", second.share))):
        require(0 < share < 1, f"imbalance.{key}.share", share, "must lie between 0 and 1")
    _check_first_stage(method)
    if second.trains == "scale" and not cfg.model.head.class_scale:
        raise UserError("imbalance.second_stage.trains=scale: there are no factors; set imbalance.class_scale=true")
    if second.trains == "margin" and not cfg.model.head.class_margin:
        raise UserError("imbalance.second_stage.trains=margin: there are no margins; set imbalance.class_margin=true")
    cosine = cfg.model.head.cosine_scale
    if cfg.model.head.class_margin and cosine is not None:
        raise UserError(f"model.head.cosine_scale={cosine}: {name} has margins of a linear layer; use null")
    bound = second.get("max_norm")
    if bound is not None and second.trains != "classifier":
        raise UserError(
            f"imbalance.second_stage.max_norm={bound}: bounds weights of the last layer, which is not trained alone; "
            "use null, or imbalance.second_stage.trains=classifier"
        )
    if cfg.optim.schedule == "one_cycle":
        raise UserError(f"optim.schedule=one_cycle: {name} has a schedule per stage; use cosine or constant")
    if cfg.model.freeze_epochs != 0:
        raise UserError(
            f"model.freeze_epochs={cfg.model.freeze_epochs}: {name} freezes the backbone itself, in its second stage; "
            "use model.freeze_epochs=0"
        )
    if cfg.trainer.strategy == "ddp":
        raise UserError(f"trainer.strategy=ddp: waits for gradients of the backbone, which {name} freezes; use auto")
    for each in ("ema", "swa"):
        if each in cfg.callbacks:
            raise UserError(f"callbacks={each}: would average weights of both stages of {name}; use callbacks=none")
    if cfg.trainer.check_val_every_n_epoch != 1:
        raise UserError(
            f"trainer.check_val_every_n_epoch={cfg.trainer.check_val_every_n_epoch}: {name} chooses among the epochs "
            "of its second stage and validates each; use 1"
        )


def _adjust_rules(cfg: DictConfig) -> None:
    method, tau = cfg.imbalance, cfg.imbalance.adjust.tau
    is_number = isinstance(tau, int | float) and not isinstance(tau, bool) and 0 <= tau < math.inf
    require(tau is None or is_number, "imbalance.adjust.tau", tau, "must be 0 or more, or null to choose one")
    _check_first_stage(method)
    if tau is None and cfg.split.name == "paper" and cfg.split.get("val_fraction") is None:
        raise UserError(
            f"imbalance={method.name}: split=paper has no validation images to choose tau on; "
            "set split.val_fraction=0.1, or a number, such as imbalance.adjust.tau=1"
        )
    if cfg.model.head.cosine_scale is not None:
        raise UserError(
            f"model.head.cosine_scale={cfg.model.head.cosine_scale}: imbalance={method.name} changes weights and bias "
            "of a linear layer, which a cosine head does not have; use null"
        )


def _check_first_stage(method: DictConfig) -> None:
    first = method.first_stage
    exists = first is None or (isinstance(first, str) and Path(first).exists())
    require(exists, "imbalance.first_stage", first, "no such run or checkpoint; give a run folder, or null")
    views = method.get("feature_views", 0)
    require(views >= 0, "imbalance.feature_views", views, "must be a number of views, or 0 to train on images")
