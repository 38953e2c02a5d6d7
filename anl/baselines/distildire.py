"""DistilDIRE-like: image and one prior call at inference, features taught by a detector that saw DIRE."""

import dataclasses

import torch
from torch.nn import functional as F

from anl.baselines import dire, dnf
from anl.baselines.interface import Baseline, Classifier, in_batches, processed
from anl.baselines.stored import Stored


def represent(settings, models):
    """x -> x and, behind it, the prior's noise at settings["noise_step"]: (B, 6, H, W)."""
    prior = dnf.load_prior(models)
    step = settings["noise_step"]
    return Stored(lambda x: torch.cat([x, prior.noise(x, step)], 1), "distildire", dnf.prior_hash(models), step,
                  prior.precision)


def prepare(data, spec, params, detector):
    """guide: (2, N, D), the features of the DIRE detector of the same seed for each training image, untouched and
    processed. That detector is trained first where there is none yet."""
    from anl import detector as detectors
    from anl import runs  # it imports the loop that calls this

    teacher = dataclasses.replace(spec, baseline="dire")
    folder = runs.find_or_train([teacher], params)[teacher]
    network = detectors.load(folder / "model.safetensors").network
    seen = dire.represent(dataclasses.asdict(params.baselines), "models")

    @torch.no_grad()
    def features(x):
        return network.features(seen(x)).mean((2, 3))

    data["guide"] = torch.stack([in_batches(features, pixels) for pixels in (data["pixels"], processed(data, params, spec))])


def distillation(output, label, guide, settings):
    """Mean squared distance between the student's and the teacher's pooled features, each (B, D)."""
    return settings["distillation_weight"] * F.mse_loss(output.features.float(), guide)


BASELINE = Baseline(
    title="DistilDIRE-like", source="Lim et al., DistilDIRE: a small, fast, cheap and lightweight diffusion synthesized "
                                    "deepfake detection, 2024",
    differs="Our prior, backbone and augmentation; the teacher is the DIRE detector above, not a pre-trained ResNet-50.",
    build=lambda detector, size, settings: Classifier(detector, size, 6), represent=represent, prepare=prepare,
    extra_loss=distillation, needs=("prior",))
