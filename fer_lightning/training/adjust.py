"""Methods that change the last layer after training (``imbalance.adjust``), and runs that begin from another's model.

The change is folded into the weights of ``best.ckpt``, so that everything that reads a checkpoint gets the adjusted
model; the model as it was trained stays beside it as ``unadjusted.ckpt``.
"""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fer_lightning.config.imbalance_rules import refuse_double_corrections
from fer_lightning.config.settings import flatten
from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import Split
from fer_lightning.evaluation.probabilities import batch_size
from fer_lightning.imbalance.adjust import choose_tau
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import replace_file

log = logging.getLogger(__name__)


def load_first_stage(model: EmotionClassifier, cfg: DictConfig, data_hash: str) -> None:
    """Give a model the weights of the run that ``cfg.imbalance.first_stage`` names.

    Raises:
        UserError: no safe checkpoint, another architecture, or one trained on other images or another split, whose
            training images may be this run's test images.
    """
    path = Path(cfg.imbalance.first_stage)
    checkpoint = read_checkpoint(path)
    hyper = checkpoint["hyper_parameters"]
    what = f"imbalance.first_stage={path}"
    if hyper["provenance"]["data_hash"] != data_hash:
        raise UserError(f"{what}: it was trained on other images; give the same data and labels")
    if hyper.get("adjusted"):
        raise UserError(f"{what}: its last layer is adjusted already; give the unadjusted.ckpt beside it")
    trained = OmegaConf.create(hyper["config"])
    for key in ("seed", "split", "labels.targets", "data.drop_duplicates"):
        before, now = OmegaConf.select(trained, key), OmegaConf.select(cfg, key)
        if before != now:
            raise UserError(f"{what}: its {key} was {before}, here it is {now}; both stages need the same images")
    ours, theirs = (architecture(model) for model in (_plain(cfg.model), hyper["model"]))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            was, now = theirs.get(key), ours.get(key)
            raise UserError(f"{what}: its model.{key} was {was}, here it is {now}; choose the same model")
    if cfg.imbalance.get("adjust"):
        parts = {key: trained.imbalance[key] for key in ("loss", "sampler", "mix") if key in trained.imbalance}
        refuse_double_corrections(OmegaConf.create({**_plain(cfg.imbalance), **parts}))
    model.load_state_dict({**model.state_dict(), **checkpoint["state_dict"]})  # a factor per class may be new
    log.info("first stage: %s (%s)", path, hyper["config"]["imbalance"]["name"])


def architecture(model: dict[str, Any]) -> dict[str, Any]:
    """The knobs of the ``model`` group, flat, that decide what a network's weights mean."""
    free = ("weights", "freeze_epochs", "compile", "drop_path", "first_image_size", "head.dropout", "head.class_scale")
    return {key: value for key, value in flatten(model).items() if key not in free and value is not None}


@torch.inference_mode()
def features(model: EmotionClassifier, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Input of the head's last layer, float32 (n, D) on the CPU, for uint8 images (n, 48, 48)."""
    model = model.to(device).eval()
    step = batch_size(model.image_size, device)
    batches = (torch.from_numpy(np.array(images[start : start + step])) for start in range(0, len(images), step))
    return torch.cat([model.features(batch.to(device)).float().cpu() for batch in batches])


def adjust(cfg: DictConfig, trained: Path, folder: Path, faces: Faces, split: Split, device: torch.device) -> Path:
    """Adjust the last layer of a trained model and write it to the run folder's ``best.ckpt``.

    Args:
        cfg: the run; ``cfg.imbalance.adjust`` says how.
        trained: the checkpoint to adjust. It may have been adjusted by this run before it was interrupted.
        folder: the run folder.
        faces: the data.
        split: its validation images choose ``tau`` where the configuration does not give it.
        device: where to compute.

    Returns:
        The written checkpoint.
    """
    best, unadjusted = (folder / "checkpoints" / name for name in ("best.ckpt", "unadjusted.ckpt"))
    if not trained.exists() or read_checkpoint(trained)["hyper_parameters"].get("adjusted"):
        trained = unadjusted
    checkpoint = read_checkpoint(trained)
    model = EmotionClassifier.load(trained)
    last = model.network.classifier[-1]
    assert isinstance(last, nn.Linear)
    method = instantiate(cfg.imbalance.adjust, _partial_=True)(class_counts=model.hparams["class_counts"])
    layer = last.weight.detach(), last.bias.detach()
    tau = method.tau
    if tau is None:
        inputs = features(model, faces.images[split.val], device)
        labels = torch.from_numpy(faces.labels[split.val])
        tau, scores = choose_tau(method, inputs, labels, *layer, cfg.monitor.removeprefix("val/"))
        first = method.candidates[0]
        log.info("tau %g chosen by %s (%.4f; %.4f at %g)", tau, cfg.monitor, max(scores), scores[0], first)
    weight, bias = method(*layer, tau)
    prefix = f"network.classifier.{len(model.network.classifier) - 1}"
    checkpoint["state_dict"] |= {f"{prefix}.weight": weight.float(), f"{prefix}.bias": bias.float()}
    checkpoint["hyper_parameters"]["adjusted"] = {"imbalance": cfg.imbalance.name, "tau": float(tau)}
    if trained != unadjusted:
        _write(unadjusted, trained.read_bytes())
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    _write(best, buffer.getvalue())
    return best


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


def _plain(node: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
