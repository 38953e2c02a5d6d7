"""The prior as a teacher on the fly: the noise of every training crop, computed when it is needed.

Crops are drawn anew in every epoch, so a cache of their noise would be as large as all batches together; what is stored is
the one number that has to be known beforehand, the noise's standard deviation over training crops.
"""

import dataclasses
from pathlib import Path

import torch

from anl import arithmetic, processes
from anl.errors import UserError
from anl.files import identity, read_json, write_json
from anl.paper.images import TrainingBatches, training_loader
from anl.paper.protocol import training_rows
from anl.paper.store import pictures
from anl.prior import NoisePrior
from anl.prior_presets import PRESETS, overlap_warning


def load_prior(settings, device):
    """The frozen prior of the profile. Raises UserError if it cannot be had, or does not fit the crop or the step."""
    used = arithmetic.in_use(settings.prior.precision, device)
    prior = NoisePrior.load(settings.prior.source, device, used, settings.prior.revision)
    prior.check_step(settings.prior.step)
    prior.check_size(settings.crop)
    return prior


def scale_path(settings, protocol):
    """Where the scale of a protocol's targets is kept."""
    return Path(settings.folders.runs) / protocol / "target.json"


def key_of(settings, protocol):
    """Hash of all that decides the scale."""
    parts = {key: dataclasses.asdict(settings)[key] for key in ("seed", "limit", "prior", "crop", "protocols", "validation")}
    return identity({**parts, "protocol": protocol})


@torch.no_grad()
def measure_scale(settings, protocol, device):
    """Write the standard deviation of the prior's noise over untouched training crops; returns the file's path.

    {"scale", "channels", "cell" (image pixels on a side of one of its cells), "images", "notes"}.
    """
    prior = load_prior(settings, device)
    train, _ = training_rows(settings, protocol)
    untouched = dataclasses.replace(settings.training, augment_probability=0.0,
                                    batch_size=min(2 * settings.prior.batch_size, settings.prior.scale_images))
    kept = pictures(settings, settings.protocols[protocol].train, train)
    batches = TrainingBatches(train, settings.crop, untouched, settings.seed, pictures=kept)
    needed = -(-settings.prior.scale_images // untouched.batch_size)
    batches.config = dataclasses.replace(untouched, steps=needed)
    me = processes.here()
    loader = iter(training_loader(batches, range(needed)[me.index::me.count], settings.training.workers))

    def moments(_):  # batches come in the order in which they are asked for
        noise = prior.noise(next(loader)["x"].to(device), settings.prior.step).double()
        return [(noise.numel(), float(noise.sum()), float(noise.square().sum()))]

    count, total, squares = (sum(column) for column in zip(*(part[0] for part in processes.spread(moments, needed, 1))))
    scale = (squares / count - (total / count) ** 2) ** 0.5
    if not 0 < scale < float("inf"):
        raise UserError(f"the prior's noise at step {settings.prior.step} has a standard deviation of {scale}; look at the "
                        "images, or choose another prior")
    notes = prior.notes(settings.crop)
    if settings.prior.source in PRESETS and (words := overlap_warning(settings.prior.source, settings.protocols[protocol].train)):
        notes.append(words)
    path = scale_path(settings, protocol)
    made = {"scale": scale, "channels": prior.channels, "cell": prior.factor, "notes": notes,
            "images": needed * untouched.batch_size, "key": key_of(settings, protocol)}
    processes.agreed(lambda: write_json(path, made))
    return path


def _stored(settings, protocol):
    path = scale_path(settings, protocol)
    return read_json(path) if path.is_file() else {}


class Teacher:
    """Targets of batches: prior's noise over its scale. Attributes: channels, cell."""

    def __init__(self, settings, protocol, device):
        stored = processes.agreed(lambda: _stored(settings, protocol))
        if stored.get("key") != key_of(settings, protocol):
            measure_scale(settings, protocol, device)
            stored = processes.agreed(lambda: _stored(settings, protocol))
        self.prior, self.step, self.batch = load_prior(settings, device), settings.prior.step, settings.prior.batch_size
        self.scale, self.channels, self.cell = stored["scale"], stored["channels"], stored["cell"]

    @torch.no_grad()
    def target(self, x, untouched):
        """x (B, 3, H, W) in [-1, 1], untouched bool (B,) -> (B, channels, H / cell, W / cell) in standard deviations, zero
        for images that are not asked for."""
        found = x.new_zeros(len(x), self.channels, x.shape[2] // self.cell, x.shape[3] // self.cell)
        asked = torch.nonzero(untouched).flatten()
        for part in asked.split(self.batch) if len(asked) else ():
            found[part] = (self.prior.noise(x[part], self.step) / self.scale).to(found)
        return found
