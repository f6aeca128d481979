"""Decoupled training: train the whole network first, then the classifier alone (Kang et al. 2020).

"Decoupling Representation and Classifier for Long-Tailed Recognition": instance-balanced sampling learns good features;
imbalance mainly harms the classifier. Both stages are epochs of one run, so that budget, curves and resume need no
extra code. ``samplers.TwoStageSampler`` draws the images of each stage.
"""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from fer_lightning.imbalance.samplers import first_stage_epochs
from fer_lightning.runtime.errors import UserError, require

log = logging.getLogger(__name__)

TRAINED = ("head", "scale", "margin", "classifier")
"""Parts of the network that a second stage can train."""


class SecondStage(L.Callback):
    """The last epochs of a run: the backbone, with its batch statistics, is frozen and part of the head is trained.

    The learning-rate schedule starts again. This callback clears the optimizer state of the trained part and restricts
    the selection of the best checkpoint to the second stage.

    Args:
        trains: ``head`` re-initialises and trains the head (classifier re-training, cRT); ``scale`` freezes all else
            and trains one factor per class (learnable weight scaling, LWS); ``margin`` freezes all else and trains a
            factor and a margin per class (MARC); ``classifier`` trains the last layer from where the first stage left
            it.
        share: share of the epochs that belong to the second stage.
        lr_scale: learning rate of the second stage relative to ``optim.lr``.
        epochs: length of the whole run.
        first_stage: checkpoint used in place of a first stage, so that all epochs belong to the second; or None.
        seed: seed of the head's new initial weights.
        max_norm: None, or after each step the weights of a class in the last layer are shortened to at most
            min |w| + max_norm (max |w| - min |w|), with the norms at the start of the stage (Alshammari et al. 2022,
            "Long-Tailed Recognition via Weight Balancing", MaxNorm).

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        trains: str,
        share: float,
        lr_scale: float,
        epochs: int,
        first_stage: str | None,
        seed: int,
        max_norm: float | None = None,
    ) -> None:
        if trains not in TRAINED:
            raise UserError(f"imbalance.second_stage.trains={trains}: choose one of {', '.join(TRAINED)}")
        if lr_scale <= 0:
            raise UserError(f"imbalance.second_stage.lr_scale={lr_scale}: must be positive")
        is_share = max_norm is None or (isinstance(max_norm, int | float) and 0 <= max_norm <= 1)
        require(is_share, "imbalance.second_stage.max_norm", max_norm, "must be from 0 to 1, or null")
        self.max_norm = max_norm
        self.longest: float | None = None
        self.trains = trains
        self.lr_scale = lr_scale
        self.epochs = epochs
        self.first_epoch = first_stage_epochs(epochs, share, first_stage)
        self.seed = seed
        if self.first_epoch == 0 and first_stage is None:
            log.warning("trainer.max_epochs=%d: no first stage; the second trains on the initial network", epochs)

    def learning(self, head: nn.Sequential) -> nn.Module:
        """The part of a network's head that the second stage trains."""
        if self.trains == "margin":
            return head[-1].get_submodule("margin")
        return head if self.trains == "head" else head[-1]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch != self.first_epoch:
            return
        learning = self.learning(pl_module.head)  # type: ignore[arg-type]
        if self.trains == "head":
            reinitialize(learning, self.seed)
        if self.max_norm is not None:
            self.longest = longest_weights(learning, self.max_norm)
        for optimizer in trainer.optimizers:
            for parameter in learning.parameters():
                optimizer.state.pop(parameter, None)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.best_k_models = {}
                callback.best_model_score = None
                callback.kth_value = None  # type: ignore[assignment]
                callback.best_model_path = callback.kth_best_model_path = ""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.longest is not None and trainer.current_epoch >= self.first_epoch:
            shorten_weights(self.learning(pl_module.head), self.longest)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.longest is None else {"longest": self.longest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.longest = state_dict.get("longest")


def longest_weights(layer: nn.Module, share: float) -> float:
    """Length that ``shorten_weights`` allows: min |w_c| + share (max |w_c| - min |w_c|) of a layer's rows."""
    lengths = layer.get_parameter("weight").detach().norm(dim=1)
    return float(lengths.min() + share * (lengths.max() - lengths.min()))


def shorten_weights(layer: nn.Module, longest: float) -> None:
    """Project the rows of a layer's weights onto balls of radius ``longest``, in place."""
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        weight.mul_((longest / weight.norm(dim=1, keepdim=True)).clamp(max=1))


def reinitialize(module: nn.Module, seed: int) -> None:
    """Draw new initial weights, a pure function of the seed, and reset batch statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in module.modules():
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
