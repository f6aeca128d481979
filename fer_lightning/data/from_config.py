"""Build the data set and the split of a configuration."""

from omegaconf import DictConfig

from fer_lightning.config.targets import target
from fer_lightning.data import ferplus
from fer_lightning.data.classes import read_mapping, select_classes
from fer_lightning.data.faces import Faces, class_noun
from fer_lightning.data.profile import Profile
from fer_lightning.data.splits import Split
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import expanded

PROFILE_KEYS = ("profile", "ratio", "total", "order")
"""Keys of ``split`` that make a ``Profile``."""


def load_faces(cfg: DictConfig) -> Faces:
    """Read the data set of a configuration, with FER+ labels if it has votes, and the classes that it asks for."""
    faces: Faces = target(cfg.data.source, "data.source", recursive=False)()
    if cfg.labels.votes is not None:
        faces = ferplus.relabel(faces, cfg.labels.votes, cfg.labels.targets)
    if "classes" in cfg.data.source:  # which has selected them before it read the images
        return faces
    mapping, only = cfg.data.get("classes"), cfg.data.get("only")
    return select_classes(faces, read_mapping(expanded(mapping)) if mapping else None, only)


def split_faces(cfg: DictConfig, faces: Faces) -> Split:
    """Split ``faces`` as a configuration describes.

    Raises:
        UserError: fewer than two classes, or a class with a single image; and as the split.
    """
    noun, counts = class_noun(faces.classes), dict(zip(faces.classes, faces.count(), strict=True))
    given = f"data={cfg.data.name}" if cfg.data.path is None else f"data.path={cfg.data.path}"
    if len(counts) < 2:
        raise UserError(f"{given}: one {noun} only, {faces.classes[0]}; two or more are needed, see data.only")
    if single := [name for name, count in counts.items() if count < 2]:
        raise UserError(
            f"{given}: {counts[single[0]]} image of {', '.join(single[:5])}; each {noun} needs "
            "two or more, or leave it out with data.classes"
        )
    arguments = {key: value for key, value in cfg.split.items() if key not in ("name", "seed", *PROFILE_KEYS)}
    if cfg.data.drop_duplicates is not None:
        arguments["drop_duplicates"] = cfg.data.drop_duplicates
    build = target(arguments, "split", recursive=False)
    return build(faces=faces, seed=split_seed(cfg), profile=_profile(cfg.split))


def split_seed(cfg: DictConfig) -> int:
    """The seed by which images are drawn: ``split.seed``, or that of the run."""
    own = cfg.split.get("seed")
    return cfg.seed if own is None else own


def _profile(split: DictConfig) -> Profile:
    """The class sizes that a split asks for; a ratio alone asks for the exponential profile."""
    shape, ratio, total, order = (split.get(key) for key in PROFILE_KEYS)
    if shape is None:
        shape = "natural" if ratio is None else "exp"
    names = None if order is None else tuple(map(str, order))
    return Profile(shape, 1.0 if ratio is None else float(ratio), total, names)
