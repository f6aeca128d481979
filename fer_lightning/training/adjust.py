"""Methods that change the last layer after training (``imbalance.adjust``), and factors that are folded into it.

The change is folded into the weights of ``best.ckpt``, so that everything that reads a checkpoint gets the adjusted
model; the model as it was trained stays beside it as ``unadjusted.ckpt``.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from fer_lightning.config.targets import target
from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import Split
from fer_lightning.evaluation.probabilities import PooledFeatures, batch_size
from fer_lightning.imbalance.adjust import choose_tau
from fer_lightning.model.checkpoint import StoredModel, write_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.model.network import MarginLinear, head_name
from fer_lightning.runtime.files import replace_file

log = logging.getLogger(__name__)


@torch.inference_mode()
def features(model: EmotionClassifier, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Input of the head's last layer, float32 (n, D) on the CPU, for uint8 images (n, H, H) or (n, 3, H, H)."""
    model = model.to(device).eval()
    step = batch_size(model.image_size, device)
    batches = (torch.from_numpy(np.array(images[start : start + step])) for start in range(0, len(images), step))
    return torch.cat([model.features(batch.to(device)).float().cpu() for batch in batches])


def adjust(
    cfg: DictConfig,
    trained: StoredModel,
    folder: Path,
    faces: Faces,
    split: Split,
    device: torch.device,
    pooled: PooledFeatures | None = None,
) -> StoredModel:
    """Adjust the last layer of a trained model and write it to the run folder's ``best.ckpt``.

    Args:
        cfg: the run; ``cfg.imbalance.adjust`` names the method.
        trained: the model to adjust. This run may have adjusted it already, before it was interrupted.
        folder: the run folder.
        faces: the data.
        split: its validation images choose ``tau`` where the configuration does not give it.
        device: where to compute.
        pooled: inputs of the head for the validation images, where they are known.

    Returns:
        The written checkpoint and its content.
    """
    best, unadjusted = (folder / "checkpoints" / name for name in ("best.ckpt", "unadjusted.ckpt"))
    if trained.content["hyper_parameters"]["adjusted"]:
        trained = StoredModel.read(unadjusted)
    path, checkpoint = trained
    model = EmotionClassifier.of(trained)
    last = model.head[-1]
    assert isinstance(last, nn.Linear)
    method = target(cfg.imbalance.adjust, "imbalance.adjust")(class_counts=model.hparams["class_counts"])
    layer = last.weight.detach(), last.bias.detach()
    tau = method.tau
    if tau is None:
        if pooled is None:
            inputs = features(model, faces.images[split.val], device)
        else:
            with torch.inference_mode():
                inputs = model.head[:-1](pooled.at(split.val))
        labels = torch.from_numpy(faces.labels[split.val])
        tau, scores = choose_tau(method, inputs, labels, *layer, cfg.monitor.removeprefix("val/"))
        first = method.candidates[0]
        log.info("tau %g chosen by %s (%.4f; %.4f at %g)", tau, cfg.monitor, max(scores), scores[0], first)
    weight, bias = method(*layer, tau)
    prefix = f"network.{head_name(model.network)}.{len(model.head) - 1}"
    checkpoint["state_dict"] |= {f"{prefix}.weight": weight.float(), f"{prefix}.bias": bias.float()}
    checkpoint["hyper_parameters"]["adjusted"] = {"imbalance": cfg.imbalance.name, "tau": float(tau)}
    best.parent.mkdir(parents=True, exist_ok=True)
    if path != unadjusted:
        replace_file(unadjusted, path.read_bytes())
    write_checkpoint(best, checkpoint)
    return StoredModel(best, checkpoint)


def fold_margins(trained: StoredModel) -> StoredModel:
    """Fold the factors and margins of a ``MarginLinear`` into its weights, and write the ordinary ``best.ckpt``.

    Args:
        trained: the model to fold. This run may have folded it already, before it was interrupted.

    Returns:
        The ordinary checkpoint, beside it.
    """
    model = EmotionClassifier.of(trained)
    last = model.head[-1]
    if not isinstance(last, MarginLinear):
        return trained
    (path, checkpoint), weights = trained, last.folded()
    prefix = f"network.{head_name(model.network)}.{len(model.head) - 1}"
    kept = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(f"{prefix}.margin.")}
    checkpoint["state_dict"] = kept | dict(zip((f"{prefix}.weight", f"{prefix}.bias"), weights, strict=True))
    checkpoint["hyper_parameters"]["model"]["head"]["class_margin"] = False
    best = path.with_name("best.ckpt")
    write_checkpoint(best, checkpoint)
    return StoredModel(best, checkpoint)
