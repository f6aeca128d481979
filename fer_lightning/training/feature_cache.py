"""Features of a frozen backbone, computed once for all runs over the same first stage.

A second stage that another run's checkpoint begins (``imbalance.first_stage``) never changes the backbone. So the
inputs of the head are computed once: of the validation and test images, and of each training image as it is or, where
augmentation is asked for, of ``imbalance.feature_views`` augmented views of it. They are kept in the cache folder under
a digest of all that they depend on; seeds, methods, losses and samplers are not among these, so a sweep shares them.

They are float32 whatever ``trainer.precision``; the head is trained in the precision of the trainer.
"""

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from omegaconf import DictConfig
from torch import nn

from fer_lightning.data.array_cache import cached_array
from fer_lightning.data.cache import default_cache_dir
from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import Split
from fer_lightning.evaluation.probabilities import PooledFeatures, batch_size
from fer_lightning.loading.augment_batches import BatchedAugmentation
from fer_lightning.loading.datamodule import FERDataModule
from fer_lightning.loading.randomness import entry_seed
from fer_lightning.model.checkpoint import weights_digest
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import head_name
from fer_lightning.training.first_stage import architecture

log = logging.getLogger(__name__)

FOLDER = "features"
"""Folder of the entries below the cache folder."""


@dataclass(frozen=True)
class KeptFeatures:
    """Inputs of the head, float32.

    Attributes:
        backbone: digest of the weights that computed them.
        scored: of the validation and test images.
        train: (V, n, D), V views of the n training images; None where nothing is trained.
    """

    backbone: str
    scored: PooledFeatures
    train: np.ndarray | None

    def of(self, model: EmotionClassifier) -> PooledFeatures | None:
        """``scored`` if the backbone of a model is the one that computed it, else None."""
        return self.scored if backbone_digest(model.network) == self.backbone else None


def keep_features(
    cfg: DictConfig, model: EmotionClassifier, datamodule: FERDataModule, split: Split, device: torch.device
) -> KeptFeatures | None:
    """The features of a run over a first stage, computed if no run before has done so.

    Args:
        cfg: the run.
        model: with the weights of the first stage; moved to ``device``.
        datamodule: its training images and their augmentation.
        split: whose validation and test images will be scored.
        device: where to compute.

    Returns:
        None where the run has no frozen backbone from its start, or must compute on images; the log says why.
    """
    if cfg.imbalance.get("first_stage") is None or not cfg.imbalance.feature_views:
        return None
    reason = _obstacle(cfg, datamodule)
    if reason is not None:
        log.info("%s: features are computed in every step, and not kept", reason)
        return None
    faces, backbone = datamodule.faces, backbone_digest(model.network)
    compute = _Computing(model, faces, device, backbone, cfg.data.cache_dir)
    rows = np.unique(np.concatenate([split.val, *split.tests.values()]))
    (scored,) = compute("validation and test" if cfg.test else "validation", rows, 1, None)
    trains = cfg.imbalance.get("second_stage") is not None
    return KeptFeatures(
        backbone, PooledFeatures(rows, scored), _of_training(cfg, datamodule, compute) if trains else None
    )


def _obstacle(cfg: DictConfig, datamodule: FERDataModule) -> str | None:
    """The setting for which features cannot be kept, or None."""
    trainer, augmentation = cfg.trainer, datamodule.augmentation
    one_by_one = not isinstance(augmentation, BatchedAugmentation) and getattr(augmentation, "pipeline", 0) is not None
    obstacles = {
        "imbalance/mix": datamodule.mix is not None,
        f"model.first_image_size={cfg.model.first_image_size}": cfg.model.first_image_size is not None,
        f"augment.backend={cfg.augment.backend}": one_by_one,
        f"trainer.limit_train_batches={trainer.limit_train_batches}": trainer.limit_train_batches is not None,
        f"trainer.fast_dev_run={trainer.fast_dev_run}": bool(trainer.fast_dev_run),
    }
    return next((name for name, present in obstacles.items() if present), None)


def _of_training(cfg: DictConfig, datamodule: FERDataModule, compute: "_Computing") -> np.ndarray:
    augmentation = datamodule.augmentation
    if not isinstance(augmentation, BatchedAugmentation) or not augmentation.strengths.changes:
        return compute("training", datamodule.split.train, 1, None)
    # No more views than epochs: keeping them then never costs more than computing them in every step.
    views = min(cfg.imbalance.feature_views, cfg.trainer.max_epochs)
    return compute("training", datamodule.split.train, views, augmentation)


@dataclass(frozen=True)
class _Computing:
    """Features of some rows of ``faces``, from the cache or computed; ``cache_dir`` as ``data.cache_dir``."""

    model: EmotionClassifier
    faces: Faces
    device: torch.device
    backbone: str
    cache_dir: str | None

    def __call__(self, what: str, rows: np.ndarray, views: int, augmentation: BatchedAugmentation | None) -> np.ndarray:
        """Features (``views``, n, D) of ``rows``; without an augmentation of the images as they are."""
        folder = (Path(self.cache_dir) if self.cache_dir else default_cache_dir()) / FOLDER
        width = self.model.head[0].get_parameter("weight").shape[1]

        def fill(values: np.ndarray) -> None:
            log.info("computing the features of %d %s images, %d view(s) of each", len(rows), what, views)
            since = time.perf_counter()
            self.model.to(self.device).network.eval()
            for view in range(views):
                self._fill(values[view], rows, view, augmentation)
            log.info(
                "computed in %.0f s; runs over the same first stage share them (%s)",
                time.perf_counter() - since,
                folder,
            )

        return cached_array(self._key(rows, views, augmentation), (views, len(rows), width), fill, folder)

    @torch.inference_mode()
    def _fill(self, values: np.ndarray, rows: np.ndarray, view: int, augmentation: BatchedAugmentation | None) -> None:
        model = self.model
        step = batch_size(model.image_size, self.device)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            images = torch.from_numpy(np.array(self.faces.images[part])).to(self.device)
            if augmentation is not None:
                changes = augmentation.sample(entry_seed(0, view, part.astype(np.uint64)))
                images = augmentation(images, changes.to(self.device), model.image_size)
            values[start : start + step] = model.pooled(images).float().cpu().numpy()

    def _key(self, rows: np.ndarray, views: int, augmentation: BatchedAugmentation | None) -> str:
        settings = architecture(self.model.hparams["model"])
        depends_on = {
            "backbone": self.backbone,
            "network": {key: value for key, value in settings.items() if not key.startswith("head.")},
            "images": [self.faces.data_hash, str(self.faces.form), _digest(rows.astype(np.int64).tobytes())],
            "augmentation": None if augmentation is None else [views, asdict(augmentation.strengths)],
            "computed by": [str(self.device.type), torch.__version__, timm.__version__],
        }
        return _digest(json.dumps(depends_on, sort_keys=True, default=str).encode())


def backbone_digest(network: nn.Module) -> str:
    """Hex digest of the names and values of a network's weights and batch statistics, without its head."""
    head = f"{head_name(network)}."
    return weights_digest({name: value for name, value in network.state_dict().items() if not name.startswith(head)})


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
