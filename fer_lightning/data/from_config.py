"""Build the data set and the split of a configuration."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from fer_lightning.data import ferplus
from fer_lightning.data.faces import Faces
from fer_lightning.data.splits import Split


def load_faces(cfg: DictConfig) -> Faces:
    """Read the data set of a configuration, with FER+ labels if it has votes."""
    # Partial, and called here: a call by Hydra hides the text of errors and wraps arguments in config nodes.
    faces: Faces = instantiate(cfg.data.source, _partial_=True, _recursive_=False)()
    if cfg.labels.votes is None:
        return faces
    return ferplus.relabel(faces, cfg.labels.votes, cfg.labels.targets)


def split_faces(cfg: DictConfig, faces: Faces) -> Split:
    """Split ``faces`` as a configuration describes."""
    arguments = {key: value for key, value in cfg.split.items() if key != "name"}
    if cfg.data.drop_duplicates is not None:
        arguments["drop_duplicates"] = cfg.data.drop_duplicates
    return instantiate(arguments, _partial_=True, _recursive_=False)(faces=faces, seed=cfg.seed)
