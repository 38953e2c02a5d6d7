"""`anl.load_detector`: a saved detector with its card, scoring pictures of any size and kind."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image, ImageOps
from safetensors import safe_open

from anl import detector as detectors
from anl.data.decode import Refused, decode, to_rgb
from anl.data.patches import to_tensor
from anl.detect import card as cards
from anl.detect import model_card
from anl.detect.crops import aggregate, tile
from anl.errors import UserError
from anl.files import sha256_of

DEFAULT = Path("models") / "detector"
BATCH = 32  # crops; on a processor larger ones are no faster, and a batch is what reading cannot run ahead of
MOST_WIDTH = 4096  # of any layer that a detector's settings may ask for


class Score(NamedTuple):
    """probability: that the picture is generated, calibrated on validation photographs. verdict: `generated`, `real` or
    `undecided`. logit: what both are read from. crops: how many were looked at. width, height: pixels."""

    probability: float
    verdict: str
    logit: float
    crops: int
    width: int
    height: int


class Tiled(NamedTuple):
    """A picture cut up. crops: uint8 (N, size, size, 3); places: (N, 2), top and left."""

    crops: np.ndarray
    places: np.ndarray
    width: int
    height: int


class ImageDetector(ModelHubMixin, library_name="anl", tags=["generated-image-detection"]):
    """A detector in use. Made by `load`, `from_pretrained` or `anl.load_detector`.

    detector: anl.detector.Detector or a baseline, in eval mode. card: anl.detect.card.Card.
    """

    def __init__(self, detector, card, folder=None):
        self.detector, self.card, self.folder = detector, card, folder
        self._hub_mixin_config = None  # the mixin would put the card into a config.json too

    @property
    def device(self):
        return next(self.detector.parameters()).device

    @classmethod
    def load(cls, folder, device="cpu"):
        """Read a detector's folder (card.json, model.safetensors).

        Nothing in the folder is ever executed. Raises UserError if a part is missing, damaged, a pickle, or not the one
        that the card speaks of.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder with a detector; get the default one with `make data`, or make one "
                            "with `anl card RUN_FOLDER`")
        weights = folder / cards.WEIGHTS
        if not weights.is_file():
            others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl"))
            found = f"; {others[0]} may be a pickle, which can run code when read, and is not opened" if others else ""
            raise UserError(f"{weights} is missing{found}; get the folder again")
        card = cards.read(folder)
        if sha256_of(weights) != card.weights_sha256:
            raise UserError(f"{weights} is not the file that {folder / cards.CARD} speaks of (another SHA-256); its "
                            "thresholds would mean nothing; get both again from one place")
        if _checked_settings(weights).get("size") != card.size:
            raise UserError(f"{weights} is of a detector that looks at another size than the {card.size} pixels of "
                            f"{folder / cards.CARD}; get both again from one place")
        return cls(detectors.load(weights, device), card, folder)

    @torch.inference_mode()
    def logits(self, crops, batch_size=BATCH):
        """Logits, float64 (N,), of uint8 crops (N, size, size, 3)."""
        device = self.device
        found = [self.detector(to_tensor(crops[i:i + batch_size]).to(device, memory_format=torch.channels_last)).logit.cpu()
                 for i in range(0, len(crops), batch_size)]
        return torch.cat(found).double().numpy()

    def tile(self, image):
        """Cut up a picture: PIL image, path, uint8 array (H, W, 3), or tensor (3, H, W), uint8 or float in [0, 1].

        Raises UserError on anything else, naming it.
        """
        pixels = as_pixels(image)
        return Tiled(*tile(pixels, self.card.size), pixels.shape[1], pixels.shape[0])

    def score(self, images, batch_size=BATCH):
        """Score of each picture, a list in their order; see `tile` for what a picture may be. One picture gives one Score.

        Memory holds one picture and one batch of crops at a time.
        """
        single = not isinstance(images, (list, tuple)) and not hasattr(images, "__next__")
        scored = [score for _, score in self.stream(((None, self.tile(image)) for image in ([images] if single else images)),
                                                    batch_size)]
        return scored[0] if single else scored

    def stream(self, tiled, batch_size=BATCH):
        """Yield (key, Score) for an iterable of (key, Tiled), in its order, computed a batch of crops at a time. None in the
        place of a Tiled comes back as None."""
        waiting, count = [], 0
        for key, picture in tiled:
            waiting.append((key, picture))
            count += 1 if picture is None else len(picture.crops)
            if count >= batch_size:
                yield from self._scored(waiting, batch_size)
                waiting, count = [], 0
        yield from self._scored(waiting, batch_size)

    def _scored(self, waiting, batch_size):
        crops = [picture.crops for _, picture in waiting if picture is not None]
        logits = self.logits(np.concatenate(crops), batch_size) if crops else np.empty(0)
        if not np.isfinite(logits).all():
            raise UserError(f"the detector in {self.folder} gives a score that is not finite; get its weights again")
        start = 0
        for key, picture in waiting:
            if picture is None:
                yield key, None
                continue
            logit = aggregate(logits[start:start + len(picture.crops)], self.card.rule)
            start += len(picture.crops)
            yield key, Score(self.card.probability(logit), self.card.verdict(logit), logit, len(picture.crops),
                             picture.width, picture.height)

    # ---- the hub's mixin: push_to_hub, save_pretrained, from_pretrained ------------------------------------------------
    def generate_model_card(self, *_, **__):
        return ModelCard(model_card.text(self.card))

    def _save_pretrained(self, save_directory):
        if self.folder is None:
            raise UserError("this detector was made in memory, without a folder; make one with `anl card RUN_FOLDER`")
        for name in (cards.CARD, cards.WEIGHTS):
            (Path(save_directory) / name).write_bytes((self.folder / name).read_bytes())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, revision=None, **options):
        """A detector from a folder, or from the hub: `owner/name` and the full commit as `revision`."""
        from anl.prior_source import commit  # not above: a folder needs no hub

        if not os.path.isdir(pretrained_model_name_or_path):
            commit(pretrained_model_name_or_path, revision)
        return super().from_pretrained(pretrained_model_name_or_path, revision=revision, **options)

    @classmethod
    def _from_pretrained(cls, *, model_id, revision=None, cache_dir=None, force_download=False, local_files_only=False,
                         token=None, device="cpu", **_):
        if os.path.isdir(model_id):
            return cls.load(model_id, device)
        folder = snapshot_download(model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
                                   local_files_only=local_files_only, token=token,
                                   allow_patterns=[cards.CARD, cards.WEIGHTS])
        return cls.load(folder, device)


def load_detector(path_or_id=None, device="cpu", revision=None):
    """A detector in use: from a folder, from the hub, or the one that comes with the repository.

    path_or_id: a folder made by `anl card`, or `hf://owner/name` with its full commit as `revision`; default
    `models/detector`. Raises UserError if it cannot be had.

    >>> load_detector().score("data/photos/Cat.png").verdict in ("generated", "real", "undecided")
    True
    """
    path = DEFAULT if path_or_id is None else path_or_id
    if os.path.isdir(path):
        if revision is not None:
            raise UserError(f"{path} is a folder and has no revision; leave the revision out")
        return ImageDetector.load(path, device)
    from anl.prior_source import commit, hint, hub_id  # not above: scoring a first picture need not wait for it

    repo = hub_id(path)
    if repo is None:
        raise UserError(f"{path} is no folder with a detector; get the default one with `make data`, or make one with `anl "
                        f"card RUN_FOLDER`{hint(str(path))}")
    revision = commit(path, revision)
    try:
        return ImageDetector._from_pretrained(model_id=repo, revision=revision, device=device)
    except UserError:
        raise
    except Exception as problem:  # the hub's client has many errors of its own, and the network's
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UserError(f"{path} cannot be downloaded ({reason[:160]}); check the name, or download the folder by hand and "
                        "pass its path") from None


def as_pixels(image):
    """uint8 RGB (H, W, 3) of a picture; see ImageDetector.tile."""
    if isinstance(image, (str, os.PathLike)):
        return decode(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(ImageOps.exif_transpose(image))  # as its file would be read
        except Refused as problem:
            raise UserError(f"a PIL image of mode {image.mode} is refused: {problem}") from None
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu()
        if array.ndim != 3 or array.shape[0] != 3:
            raise UserError(f"a tensor of shape {tuple(image.shape)} is no picture; give (3, H, W)")
        if array.is_floating_point():
            if not bool(((array >= 0) & (array <= 1)).all()):
                raise UserError("a float tensor must lie in [0, 1]; scale it, or give uint8")
            array = (array * 255).round().to(torch.uint8)
        image = array.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    kind = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"a {kind} is no picture; give a path, a PIL image, a uint8 array (H, W, 3) or a tensor (3, H, W)")


def _checked_settings(path):
    """The detector's settings, a dict; such as would fetch or allocate what a detector has no use for are refused: they come
    with a file from elsewhere."""
    import timm

    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads(file.metadata()["detector"])
    except Exception as problem:
        raise UserError(f"{path} holds no detector ({str(problem).strip().splitlines()[0][:160]}); get it again") from None
    flat = {**settings, **settings.get("detector", {})} if isinstance(settings, dict) else {}
    if flat.get("backbone") not in timm.list_models():
        raise UserError(f"{path}: the backbone {flat.get('backbone')!r} is no model of timm; get the file from a place you trust")
    wide = [key for key, value in flat.items() if isinstance(value, (int, float)) and not abs(value) <= MOST_WIDTH]
    if wide:
        raise UserError(f"{path}: its setting {wide[0]} is {flat[wide[0]]}, over the limit of {MOST_WIDTH}; get the file from "
                        "a place you trust")
    return settings

