"""`anl.load_detector`: a packaged detector that scores pictures of any size and kind."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image, ImageOps
from torch import nn

from anl.data import video
from anl.data.decode import Refused, decode, refusal, to_rgb
from anl.data.images import to_tensor
from anl.detect import card as cards
from anl.detect.tiles import tile
from anl.evaluation.scoring import full_precision, score
from anl.io import UserError, printable, reason, sha256_of
from anl.models import checkpoint

DEFAULT = Path("models") / "detector"
BATCH = 32  # crops
FRAMES, FRAME_CROPS = 16, 4  # most frames per video, and most crops per frame
SCHEME, HUB_ID, COMMIT = "hf://", re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"), re.compile(r"[0-9a-f]{40}")
MAX_SETTING = 4096  # largest number accepted in a detector's settings, which may come from an untrusted file
NOT_HERE = "get the default one with `dvc pull detector`, or pack a run with `anl export RUN --to folder`"


class FrameScore(NamedTuple):
    """The score of one frame of a video, `time` seconds from its beginning."""

    time: float
    probability: float
    logit: float


class Score(NamedTuple):
    """The score of one image or video.

    Attributes
    ----------
    probability : float
        Probability that the image is generated; calibrated on validation images.
    verdict : str
        `generated`, `undecided` or `real`.
    logit : float
        Mean over the crops; of a video, mean over the means of its frames. Probability and verdict follow from it.
    crops, width, height : int
        Number of scored crops, and size of the image in pixels.
    frames : tuple of FrameScore
        One for each scored frame of a video; empty for an image.
    """

    probability: float
    verdict: str
    logit: float
    crops: int
    width: int
    height: int
    frames: tuple = ()

    @property
    def generated_share(self):
        """Share of a video's scored frames with a probability above 0.5; None for an image."""
        return sum(frame.probability > 0.5 for frame in self.frames) / len(self.frames) if self.frames else None


class Tiled(NamedTuple):
    """The crops of an image, uint8 (N, size, size, 3), their corners (N, 2), and the image's width and height.

    For a video: the crops of all frames. `times` (seconds) and `counts` (number of crops) have an entry for each frame.
    """

    crops: np.ndarray
    places: np.ndarray
    width: int
    height: int
    times: tuple = ()
    counts: tuple = ()


class InUse(nn.Module):
    """The network and its calibration: crops (N, 3, size, size) in [-1, 1] -> logit (N,), probability (N,), evidence.

    evidence (N, h, w): the log-odds of each cell; their mean is the log-odds of the crop. Networks without cells, such as
    some baselines, return no evidence.
    """

    def __init__(self, network, card):
        super().__init__()
        self.network, self.midpoint, self.temperature = network, card.midpoint, card.temperature

    def forward(self, crops):
        if not hasattr(self.network, "cell_logits"):
            logit = self.network(crops).logit
            return logit, torch.sigmoid((logit - self.midpoint) / self.temperature)
        evidence = self.network.cell_logits(crops) + self.network.classifier.bias
        logit, evidence = evidence.mean((1, 2)), (evidence - self.midpoint) / self.temperature
        return logit, torch.sigmoid((logit - self.midpoint) / self.temperature), evidence


class ImageDetector(ModelHubMixin, library_name="anl", tags=["generated-image-detection"]):
    """A packaged detector, as returned by `anl.load_detector`.

    Parameters
    ----------
    network : nn.Module
        A detector, or a baseline without a frozen model, in inference form.
    card : anl.detect.card.Card
    folder : Path or None
        Where both are stored.
    device : str
    """

    def __init__(self, network, card, folder=None, device="cpu"):
        self.network, self.card, self.folder, self.device = network.to(device).eval(), card, folder, torch.device(device)
        self._hub_mixin_config = None  # the mixin would put the card into a config.json too

    @classmethod
    def load(cls, folder, device="cpu"):
        """Read a packaged detector's folder. Only safetensors are opened and nothing in the folder is executed."""
        folder = Path(folder)
        weights = folder / cards.WEIGHTS
        if not weights.is_file():
            pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl"))
            found = f"; {pickles[0]} may be a pickle, which can run code, and is not opened" if pickles else ""
            raise UserError(f"{weights} is missing{found}; {NOT_HERE}")
        card = cards.read(folder)
        if sha256_of(weights) != card.weights_sha256:
            raise UserError(f"{weights} is not the file that its card was made for (another SHA-256), so that its thresholds "
                            "would be wrong; get the whole folder again")
        builders = {"detector": lambda **settings: _build("detector", settings),
                    "baseline": lambda **settings: _build("baseline", settings)}
        return cls(checkpoint.load(weights, builders, device), card, folder, device)

    def logits(self, crops, batch_size=BATCH):
        """Logits, float64 (N,), of uint8 crops (N, size, size, 3)."""
        return score(self.network, crops, self.device, batch_size)

    def evidence(self, crops, batch_size=BATCH):
        """Log-odds of the cells of uint8 crops (N, size, size, 3): float array (N, h, w), positive for generated."""
        module, found = InUse(self.network, self.card), []
        with full_precision(self.network, self.device):
            for start in range(0, len(crops), batch_size):
                found.append(module(to_tensor(crops[start:start + batch_size], self.device))[2:])
        if not found[0]:
            raise UserError(f"a detector of kind '{self.network.kind}' has no evidence map; leave out --map")
        return torch.cat([part for part, in found]).float().cpu().numpy()

    def tile(self, image):
        """Cut an image into crops: path, PIL image, uint8 array (H, W, 3), or tensor (3, H, W), uint8 or float in [0, 1].

        The path may be that of a video, of which up to FRAMES frames, evenly spaced in time, are cut into crops.
        """
        if isinstance(image, (str, os.PathLike)) and video.starts_like_video(image):
            try:
                return self.tile_video(image)
            except Refused as problem:
                raise refusal(os.fspath(image), problem) from None
        pixels = as_pixels(image)
        return Tiled(*tile(pixels, self.card.size), pixels.shape[1], pixels.shape[0])

    def tile_video(self, path):
        """Cut frames of a video into crops. Raises Refused if there are none."""
        frames = [(frame.time, *tile(frame.pixels, self.card.size, FRAME_CROPS), frame.pixels.shape)
                  for frame in video.read_frames(path, FRAMES)]
        times, crops, places, shapes = zip(*frames, strict=True)
        return Tiled(np.concatenate(crops), np.concatenate(places), shapes[0][1], shapes[0][0], times, tuple(map(len, crops)))

    def score(self, images, batch_size=BATCH):
        """The Score of an image or video, or a list of them for a list or iterator; see `tile` for what an image may be.

        Memory holds one image and one batch of crops at a time.
        """
        if batch_size < 1:
            raise UserError(f"a batch of {batch_size} crops is empty; raise batch_size")
        single = not isinstance(images, (list, tuple)) and not hasattr(images, "__next__")
        tiled = ((None, self.tile(image)) for image in ([images] if single else images))
        scored = [found for _, found in self.stream(tiled, batch_size)]
        return scored[0] if single else scored

    def stream(self, tiled, batch_size=BATCH):
        """Yield (key, Score) for an iterable of (key, Tiled), in its order, a batch of crops at a time.

        None in place of a Tiled comes back as None.
        """
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
        logits, start = self.logits(np.concatenate(crops), batch_size) if crops else None, 0
        for key, picture in waiting:
            if picture is None:
                yield key, None
                continue
            own = logits[start:start + len(picture.crops)]
            start += len(picture.crops)
            parts = [float(part.mean()) for part in np.split(own, np.cumsum(picture.counts)[:-1])] if picture.counts else []
            frames = tuple(FrameScore(time, self.card.probability(part), part) for time, part in zip(picture.times, parts, strict=True))
            logit = float(np.mean(parts) if parts else own.mean())
            yield key, Score(self.card.probability(logit), self.card.verdict(logit), logit, len(own), picture.width, picture.height,
                             frames)

    # ---- the hub: push_to_hub, save_pretrained, from_pretrained --------------------------------------------------------
    def generate_model_card(self, *_, **__):
        return ModelCard(cards.model_card(self.card))

    def _save_pretrained(self, save_directory):
        if self.folder is None:
            raise UserError("this detector has no folder; pack a run with `anl export RUN --to folder`")
        for name in (cards.CARD, cards.WEIGHTS):
            (Path(save_directory) / name).write_bytes((Path(self.folder) / name).read_bytes())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, revision=None, device="cpu", **_):
        """`load_detector` under the hub's usual name: a folder, or `owner/name` with its full commit as `revision`."""
        name = pretrained_model_name_or_path
        known = os.path.isdir(name) or str(name).startswith("hf://")
        return load_detector(name if known else f"hf://{name}", device, revision)


def choose_device(name=None):
    """The device called `name`; default: the GPU if there is one. Raises UserError if there is no such device."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(f"there is no GPU for the device '{name}' here; leave it out, or choose cpu")
        if kind in ("cpu", "cuda"):
            torch.empty(0, device=name)
            return name
    except (RuntimeError, TypeError):
        pass
    raise UserError(f"'{printable(str(name))}' is not a device here; choose cpu or cuda")


def load_detector(path_or_id=None, device="cpu", revision=None):
    """Load a packaged detector from a folder or the Hugging Face hub.

    Parameters
    ----------
    path_or_id : path-like or str, optional
        A folder, or `hf://owner/name`. Default: `models/detector`.
    device : str or None
        `cpu` or `cuda`; None: the GPU if there is one.
    revision : str, optional
        Full commit (40 hex digits); required for a hub id.

    Returns
    -------
    ImageDetector

    Raises
    ------
    UserError
        If it is missing or cannot be downloaded, or a file is damaged, a pickle, or not the one that the card describes.

    Examples
    --------
    >>> anl.load_detector().score("data/photos/Cat.png").verdict  # doctest: +SKIP
    'undecided'
    """
    path, device = str(DEFAULT if path_or_id is None else path_or_id), choose_device(device)
    if os.path.isdir(path):
        if revision is not None:
            raise UserError(f"{path} is a folder, which has no revision; leave the revision out")
        return ImageDetector.load(path, device)
    repo = path.removeprefix(SCHEME)
    if not path.startswith(SCHEME):
        hint = f"; for a detector of the hub write {SCHEME}{path} and its revision" if HUB_ID.fullmatch(path) else ""
        raise UserError(f"{path} is not a folder with a packaged detector; {NOT_HERE}{hint}")
    if not HUB_ID.fullmatch(repo):
        raise UserError(f"{path} is not a hub id; write {SCHEME}owner/name")
    if not COMMIT.fullmatch(str(revision)):
        given = "" if revision is None else f", not '{printable(str(revision))}'"
        raise UserError(f"{path} needs a revision, the full commit of 40 hex digits{given}: a branch can change its weights later")
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=[cards.CARD, cards.WEIGHTS])
    except Exception as problem:  # the hub's client and the network have many errors
        raise UserError(f"{path} cannot be downloaded ({reason(problem)}); check the name and the commit, or download it on "
                        "another machine and pass the folder") from None
    return ImageDetector.load(folder, device)


def as_pixels(image):
    """uint8 RGB (H, W, 3) of an image; see `ImageDetector.tile`. Raises UserError on anything else."""
    if isinstance(image, (str, os.PathLike)):
        return decode(image)
    if isinstance(image, Image.Image):
        if getattr(image, "is_animated", False) or not all(image.size):
            raise UserError(f"a PIL image of {getattr(image, 'n_frames', 1)} frames and {image.width} x {image.height} pixels is refused; give "
                            "one frame, copied")
        try:
            return to_rgb(ImageOps.exif_transpose(image))  # as its file would be read
        except Refused as problem:
            raise UserError(f"a PIL image of mode {image.mode} is refused: {problem}; convert it to RGB") from None
        except (OSError, ValueError, AttributeError) as problem:  # truncated, or closed
            raise UserError(f"a PIL image cannot be read ({reason(problem)}); open its file again") from None
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise UserError(f"a tensor of shape {tuple(image.shape)} is not an image; give (3, H, W)")
        array = image.detach().cpu()
        if array.is_floating_point():
            if not bool(((array >= 0) & (array <= 1)).all()):
                raise UserError("a float tensor must be in [0, 1]; scale it, or give uint8")
            array = (array * 255).round().to(torch.uint8)
        image = array.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    kind = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"a {kind} is not an image; give a path, a PIL image, a uint8 array (H, W, 3) or a tensor (3, H, W)")


def _build(kind, settings):
    """An untrained network from saved settings; those that would download or allocate far too much are refused."""
    flat = {**settings, **settings.get("detector", {})}
    large = [key for key, value in flat.items() if isinstance(value, (int, float)) and not abs(value) <= MAX_SETTING]
    if large or "pretrained" in flat:
        raise UserError(f"its setting '{(large or ['pretrained'])[0]}' is refused; get the file from a place you trust")
    if kind == "detector":
        from anl.models.detector import Detector

        return Detector(**settings)
    from anl.models import baselines

    def refuse(needs, options):
        raise UserError(f"baseline '{settings['name']}' reads a frozen model ({needs}) at inference and cannot be packaged")

    return baselines.builder(refuse)(**settings)
