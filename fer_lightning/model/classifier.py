"""The LightningModule: an EfficientNet with the paper's head, trained with any loss."""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from fer_lightning.config.schema import check_model
from fer_lightning.data.faces import EMOTIONS, ImageForm, about_faces, trained_on
from fer_lightning.imbalance.functional import expected_loss
from fer_lightning.imbalance.second_stage import SecondStage
from fer_lightning.imbalance.sharpness import ClassSharpness
from fer_lightning.model import sam
from fer_lightning.model.checkpoint import HYPER_PARAMETERS, StoredModel
from fer_lightning.model.ensemble import Ensemble
from fer_lightning.model.network import NETWORK_KEYS, ClassMargin, ClassScale, build_network, check_size, head_of
from fer_lightning.model.normalization import channel_values, normalize
from fer_lightning.model.optimizer import build_optimizer, build_schedule
from fer_lightning.model.step_metrics import training_metrics
from fer_lightning.presentation.printable import shortened
from fer_lightning.runtime.errors import UserError, one_line

log = logging.getLogger(__name__)


def input_size(epoch: int, epochs: int, first: int | None, last: int) -> int:
    """Side of the network's input in an epoch, in pixels.

    ``last`` throughout, or progressive resizing: four stages of equal length, whose sizes grow evenly from ``first`` to
    ``last`` in multiples of 8 (Tan & Le 2021, "EfficientNetV2: Smaller Models and Faster Training", section 4.2).

    Args:
        epoch: from 0.
        epochs: length of the run.
        first: size of the first stage; None for no stages.
        last: size of the last stage.
    """
    stage = 3 if epoch >= epochs - 1 else 4 * epoch // epochs
    return last if first is None or stage == 3 else first + (last - first) * stage // 3 // 8 * 8


class EmotionClassifier(L.LightningModule):
    """A network of timm, by default EfficientNet, + custom head + a swappable loss.

    ``forward`` takes images, uint8 or 0..255 float, gray (B, H, W) or red, green, blue (B, 3, H, W), and returns logits
    (B, C): resizing to the model's input, normalisation and the three-channel repeat of gray happen inside, on the
    device, so that training, evaluation and export cannot differ.

    Args:
        model: the ``model`` group of the configuration.
        optim: its ``optim`` group.
        class_counts: training images of each of the C classes, kept for methods that need the prior after training.
        config: the whole composed run, kept in the checkpoint.
        provenance: ``data_hash``, ``git_commit`` and versions, kept in the checkpoint.
        loss: module called with (logits (B, C), labels (B,)), which returns the loss of each image (B,); only training
            needs it. Not stored in checkpoints.
        second_stage: the second stage of a decoupled method. Not stored in checkpoints.
        adjusted: how the last layer was changed after training (method, ``tau``), kept in the checkpoint.
        scorecard: the test scores and the temperature of a tested model (``scorecard.py``), kept in the checkpoint.
        classes: names of the C classes, kept in the checkpoint.
        form: ``size`` and ``color`` of the training images, see ``ImageForm``, kept in the checkpoint.
        members: the hyper-parameters of two or more trained models, for an ensemble of them (see ``Ensemble``), which
            then is the network; kept in its checkpoint, and absent in others.

    The hyper-parameters are plain Python, so checkpoints load with ``weights_only=True``.
    """

    loss: nn.Module | None

    # The hyper-parameters of every checkpoint under their own keys, and two that are not stored.
    def __init__(  # noqa: PLR0913
        self,
        model: dict[str, Any],
        optim: dict[str, Any],
        class_counts: list[int],
        config: dict[str, Any],
        provenance: dict[str, Any],
        loss: nn.Module | None = None,
        second_stage: SecondStage | None = None,
        adjusted: dict[str, Any] | None = None,
        scorecard: dict[str, Any] | None = None,
        classes: Sequence[str] = EMOTIONS,
        form: dict[str, Any] | None = None,
        members: list[dict[str, Any]] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(
            ignore=["loss", "second_stage", *(["members"] if members is None else [])], logger=False
        )
        network: Any
        if members is None:
            network = build_network(**{key: model[key] for key in NETWORK_KEYS}, num_classes=len(class_counts))
        else:
            network = _ensemble(members)
        self.network = network.to(memory_format=torch.channels_last)
        self.classes = tuple(classes)
        self.form = ImageForm(**(form or {}))
        self.in_channels = model["in_channels"]
        self.image_size = max(each["model"]["image_size"] for each in members) if members else model["image_size"]
        self.first_image_size = model.get("first_image_size")
        pretrained_cfg: Any = (self.members[0] if self.members else self).network.pretrained_cfg
        if self.first_image_size and pretrained_cfg.get("fixed_input_size"):
            raise UserError(
                f"model.first_image_size={self.first_image_size}: {model['name']} has one input size; use null"
            )
        self.perturbed = False
        self.rest_of_loss: Tensor | None = None
        self.logged = self.val_logged = False
        self.freeze_epochs = math.inf if model["freeze_epochs"] == -1 else model["freeze_epochs"]
        self.optim = optim
        # Keep the loss out of submodules and the normalisation out of buffers: weight averaging would average their
        # constants too, and round them in every step.
        self.__dict__["loss"] = loss
        self.second_stage = second_stage
        self.mean, self.std = (channel_values(tuple(pretrained_cfg[key]), self.form.color) for key in ("mean", "std"))
        metrics = training_metrics(len(class_counts))
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.train_loss = MeanMetric(nan_strategy="disable")  # so that a checkpoint can hold its sums

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.prepare(images, self.image_size))

    def pooled(self, images: Tensor) -> Tensor:
        """Input of the head, (B, D)."""
        prepared = self.prepare(images, self.image_size)
        return self.network.forward_head(self.network.forward_features(prepared), pre_logits=True)

    def features(self, images: Tensor) -> Tensor:
        """Input of the head's last layer, (B, D)."""
        return self.head[:-1](self.pooled(images))

    @property
    def about_faces(self) -> bool:
        """Whether its images are faces, see ``faces.about_faces``."""
        return about_faces(self.classes, trained_on(self.hparams["config"]))

    @property
    def members(self) -> list["EmotionClassifier"]:
        """The members of an ensemble, in the order of their checkpoints; empty for a single network."""
        return list(self.network.members) if isinstance(self.network, Ensemble) else []  # type: ignore[arg-type]

    @property
    def head(self) -> nn.Sequential:
        """The custom head; its last layer gives the logits."""
        return head_of(self.network)

    def prepare(self, images: Tensor, size: int) -> Tensor:
        """Images (B, H, W) or (B, 3, H, W) as the network's input (B, ``in_channels``, ``size``, ``size``).

        Those of an ensemble stay as they are: each member prepares its own input.
        """
        if isinstance(self.network, Ensemble):
            return images
        return normalize(images, self.mean, self.std, self.in_channels, size)

    def _logits(self, inputs: Tensor, size: int) -> Tensor:
        """Logits of images, or of features (B, D) that a data module keeps of them."""
        return self.head(inputs) if inputs.ndim == 2 else self.network(self.prepare(inputs, size))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        epochs: int = self.trainer.max_epochs or 1
        size = input_size(self.current_epoch, epochs, self.first_image_size, self.image_size)
        logits = self._logits(inputs, size)
        assert self.loss is not None, "training needs a loss"
        soft = targets.ndim == 2  # (B, C) where images are mixed, or labels are votes
        losses = expected_loss(self.loss, logits, targets) if soft else self.loss(logits, targets)
        loss = losses.mean()
        part = loss
        if isinstance(self.loss, ClassSharpness):
            share = targets @ self.loss.sharp if soft else self.loss.sharp[targets]
            part = (share * losses).mean()
            if not self.perturbed:
                self.rest_of_loss = ((1 - share) * losses).mean()
        if self.perturbed:
            return part
        labels = targets.argmax(dim=1) if soft else targets
        self.train_metrics.update(logits.detach(), labels)
        self.train_loss.update(loss.detach())  # batches are of equal size
        if not self.logged:  # one call an epoch is enough to have them computed at its end; one a step costs 2 ms
            self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
            self.log("train/loss", self.train_loss, prog_bar=True, on_step=False, on_epoch=True)
            self.logged = True
        return part

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, labels = batch
        logits = self._logits(inputs, self.image_size)
        self.val_metrics.update(logits, labels)
        if not self.val_logged:
            self.log_dict(self.val_metrics, on_step=False, on_epoch=True)
            self.val_logged = True
        assert self.loss is not None, "validation during training needs a loss"
        loss = self.loss(logits, labels).mean()
        # on_step with sync_dist hangs when ranks have unequal numbers of validation batches.
        self.log("val/loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        rho = self.optim.get("sam_rho")
        assert optimizer_closure is not None
        closure = optimizer_closure
        if rho:
            closure = partial(self._sharpness_aware, optimizer_closure, rho)
        elif isinstance(self.loss, ClassSharpness):
            closure = partial(self._class_sharpness, optimizer_closure, self.loss.rho)
        optimizer.step(closure=closure)

    def _class_sharpness(self, closure: Callable[[], Any], rho: float) -> Any:
        def sharp() -> Any:
            try:
                return closure()
            finally:
                self.perturbed = True  # only the first pass is scored

        def rest() -> None:
            loss, self.rest_of_loss = self.rest_of_loss, None
            assert loss is not None
            self.trainer.strategy.backward(loss, None)

        try:
            return sam.split_passes(sharp, rest, self.network, rho)
        finally:
            self.perturbed, self.rest_of_loss = False, None

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # The rest of the loss has a backward pass of its own over the same graph, see ``sam.split_passes``.
        super().backward(loss, *args, retain_graph=self.rest_of_loss is not None, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if not (self.perturbed and isinstance(self.loss, ClassSharpness)):
            optimizer.zero_grad()

    def _sharpness_aware(self, closure: Callable[[], Any], rho: float) -> Any:
        passes = iter((False, True))

        def one_pass() -> Any:
            self.perturbed = next(passes)  # scores of the second pass are not the model's
            return closure()

        try:
            return sam.two_passes(one_pass, self.network, rho)
        finally:
            self.perturbed = False

    def on_validation_epoch_start(self) -> None:
        self.val_logged = False

    def on_fit_start(self) -> None:
        if self.loss is not None:
            self.loss.to(self.device)

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # Lightning skips it for an epoch that is resumed in its middle

    def on_train_epoch_start(self) -> None:
        self.logged = False
        set_epoch = getattr(self.loss, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.current_epoch)
        trained = self.trained_part()
        if self.freeze_epochs or self.second_stage is not None:
            # Toggled after DDP has wrapped the model: DDP hooks only the parameters that require gradients then.
            trainable = {id(parameter) for parameter in trained.parameters()}
            if trained is self.network:
                trainable -= self._second_stage_parameters()
            for parameter in self.network.parameters():
                parameter.requires_grad = id(parameter) in trainable
        self.network.eval()
        trained.train()

    def trained_part(self) -> nn.Module:
        """The part of the network that is trained in this epoch; the rest keeps its batch statistics too."""
        if self.second_stage is not None and self.current_epoch >= self.second_stage.first_epoch:
            return self.second_stage.learning(self.head)
        return self.head if self.current_epoch < self.freeze_epochs else self.network

    def _second_stage_parameters(self) -> set[int]:
        """Ids of the factors and margins per class, which only the second stage trains."""
        added = (module for module in self.head.modules() if isinstance(module, ClassScale | ClassMargin))
        return {id(parameter) for module in added for parameter in module.parameters()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.network, self.optim, frozen=bool(self.freeze_epochs))
        total = int(self.trainer.estimated_stepping_batches)
        limit = self.hparams["config"]["trainer"]["max_steps"]  # not the Trainer's own, see ExactResume
        total = min(total, limit) if limit >= 0 else total
        stage = self.second_stage
        first = None if stage is None else total * stage.first_epoch // stage.epochs
        scale = 1.0 if stage is None else stage.lr_scale
        schedule = build_schedule(optimizer, self.optim["schedule"], total, self.optim["warmup_fraction"], first, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @classmethod
    def load(cls, path: Path) -> "EmotionClassifier":
        """Read a checkpoint for inference, on the CPU and in ``eval`` mode.

        Nothing is downloaded (the weights are in the file) and nothing in the file is executed.

        Raises:
            UserError: see ``read_checkpoint`` and ``of``.
        """
        return cls.of(StoredModel.read(path))

    @classmethod
    def of(cls, stored: StoredModel) -> "EmotionClassifier":
        """The model of a checkpoint that was read, which keeps tensors of its own.

        Raises:
            UserError: its hyper-parameters do not describe a model, or describe another one than its weights.
        """
        path, checkpoint = stored
        kept = {key: checkpoint["hyper_parameters"][key] for key in HYPER_PARAMETERS}
        kept["members"] = kept["members"] and [_without_weights(member) for member in kept["members"]]
        kept = _without_weights(kept)
        state = checkpoint["state_dict"]
        try:
            for place, member in enumerate(kept["members"] or ()):
                prefix = f"network.members.{place}."
                _check_network(member, {key: tensor for key, tensor in state.items() if key.startswith(prefix)})
            if not kept["members"]:
                _check_network(kept, state)
            model = cls(**kept)
            own = model.state_dict()
            for name in own.keys() & state.keys():  # torch would silently convert them
                if own[name].is_floating_point() != state[name].is_floating_point():
                    raise UserError(f"{name}: is of type {state[name].dtype}, and the model's is {own[name].dtype}")
            model.load_state_dict(state)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception as error:  # torch and timm raise many types for values that do not describe a network
            reason = shortened(one_line(error), 200)
            raise UserError(f"{path}: its weights and hyper-parameters do not fit together ({reason})") from error
        return model.eval()


def _ensemble(members: Sequence[dict[str, Any]]) -> Ensemble:
    temperatures = [(member.get("scorecard") or {}).get("temperature") or 1.0 for member in members]
    return Ensemble([EmotionClassifier(**member) for member in members], temperatures)


def _without_weights(hyper: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters whose network starts from no file: the weights are in the checkpoint."""
    return {**hyper, "model": {**hyper["model"], "weights": "none"}}


def _check_network(hyper: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Refuse hyper-parameters that do not describe a model, or describe one that is larger than its weights ``state``.

    Raises:
        UserError: naming the setting.
    """
    model = hyper["model"]
    check_model(model)
    if (hyper["form"] or {}).get("color") and model["in_channels"] != 3:
        raise UserError(f"model.in_channels={model['in_channels']}: must be 3 for colour images")
    check_size(model, len(hyper["class_counts"]), state)
