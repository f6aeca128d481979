"""Stochastic weight averaging: resumed with the same bits, and scored with the weights that are saved."""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fer_lightning.config.rules import first_averaged_epoch
from fer_lightning.loading.datamodule import FERDataModule
from fer_lightning.model.classifier import EmotionClassifier

log = logging.getLogger(__name__)


class StochasticWeightAveraging(WeightAveraging):
    """The equal mean of the weights at the ends of the last epochs; before the first of them, the weights as they are.

    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization", algorithm 1 with a cycle
    of one epoch; the learning rate is that of ``optim.schedule``. The mean is updated before the validation of its
    epoch, so what is validated is what is saved. Its batch-norm statistics are those of the mean itself, computed from
    training batches as in section 3.2, since a mean of statistics is not the statistics of the mean.

    Not Lightning's callback of this name: that one validates and saves the raw weights until the end of training, sets
    a schedule of its own, and keeps statistics of single batches (Lightning issues 6074, 8811 and 14866).

    Args:
        start: share of the epochs before the first that is averaged, in [0, 1).
        statistics_batches: training batches of this process that the statistics are computed from.
    """

    def __init__(self, start: float = 0.75, statistics_batches: int = 100) -> None:
        super().__init__(use_buffers=False)
        self.start = start
        self.statistics_batches = statistics_batches

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pass  # averaged at the ends of epochs only

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._update(trainer, pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update(trainer, pl_module)  # of an epoch without validation

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        number = 0 if self._average_model is None else int(self._average_model.n_averaged)
        first = first_averaged_epoch(self.start, trainer.max_epochs or 1) + 1
        if trainer.is_global_zero:
            ends = (
                f"epochs {first} to {first + number - 1}" if number > 1 else "one epoch: training ended before a second"
            )
            log.info("callbacks=swa: the mean of the weights at the end of %s", ends)

    def _update(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        average = self._average_model
        if average is None or trainer.global_step == self._latest_update_step:
            return
        if trainer.current_epoch <= first_averaged_epoch(self.start, trainer.max_epochs or 1):
            average.n_averaged.zero_()  # so that the update copies
        average.update_parameters(pl_module)
        self._latest_update_step = trainer.global_step
        if int(average.n_averaged) > 1:
            assert isinstance(pl_module, EmotionClassifier)
            self._compute_statistics(trainer, pl_module, average.module)

    @torch.no_grad()
    def _compute_statistics(self, trainer: L.Trainer, model: EmotionClassifier, average: nn.Module) -> None:
        """Replace the mean's batch-norm statistics where the model learns its own; a frozen part keeps them.

        Without dropout, as the network is evaluated, so no random numbers are drawn.
        """
        trained = set(map(id, model.trained_part().modules()))
        pairs = zip(model.modules(), average.modules(), strict=True)
        norms = [copy for own, copy in pairs if id(own) in trained and isinstance(copy, _BatchNorm)]
        norms = [norm for norm in norms if norm.track_running_stats]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        average.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the equal mean over the batches
            norm.train()
        datamodule: FERDataModule = trainer.datamodule  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            for images, _ in datamodule.first_batches(trainer.current_epoch, self.statistics_batches):
                average(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))
        average.train()
