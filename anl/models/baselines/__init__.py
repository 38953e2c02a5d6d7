"""The methods that ANL is compared with, trained by the same loop and scored by the same code."""

from anl.io import UserError, pick
from anl.models.baselines import aeroblade, diffusion, pixels, univfd
from anl.models.baselines.cache import FeatureCache, weights_hash
from anl.models.baselines.interface import (
    BACKBONE_SETTINGS,
    Baseline,
    BaselineDetector,
    fixed_augmentation,
)
from anl.models.precision import effective_precision

__all__ = ["BASELINES", "build", "builder", "fixed_augmentation", "frozen_hash", "get"]

BASELINES: dict[str, Baseline] = {
    "plain": pixels.PLAIN, "blur_jpeg": pixels.BLUR_JPEG, "find": pixels.FIND, "npr": pixels.NPR, "srm": pixels.SRM,
    "spectrum": pixels.SPECTRUM, "dnf": diffusion.DNF, "lare": diffusion.LARE, "dire": diffusion.DIRE,
    "distildire": diffusion.DISTILDIRE, "drct": diffusion.DRCT, "diffusionfake": diffusion.DIFFUSIONFAKE, "aeroblade": aeroblade.AEROBLADE,
    "univfd": univfd.UNIVFD}


def get(name):
    """The Baseline called `name`. Raises UserError on an unknown one."""
    return BASELINES[pick("method.baseline", name, BASELINES)]


def build(name, detector, size, options, frozen=None, *, cache=None, seed=0, channels=None, frozen_sha256=None):
    """Build an untrained baseline detector.

    Parameters
    ----------
    name : str
        A key of `BASELINES`.
    detector : dict
        Settings of the detector; `backbone`, `stride`, `stem_width` and `pretrained` are used.
    size : int
        Pixels on a side of the training crops.
    options : dict
        The section `baselines` of the configuration; only what this method reads is used and kept.
    frozen : NoisePrior, list of autoencoders, Encoder, or None
        The frozen model of the kind `BASELINES[name].needs`. Without it the detector has weights but cannot score
        images.
    cache : path-like or None
        Folder in which representations are kept. None: they are computed each time.
    seed : int
        Seed of the initial weights.
    channels, frozen_sha256 : int, str
        Channels of the representation and hash of the frozen model, as saved with a detector; default: those of `frozen`.

    Returns
    -------
    BaselineDetector
        On the CPU; the frozen model stays where it is.

    Raises
    ------
    UserError
        If the name is unknown, neither `frozen` nor `channels` is given where one is needed, or `frozen` differs from
        the model with hash `frozen_sha256`.
    """
    baseline, represent = get(name), None
    used = {key: options[key] for key in (*baseline.parameters, *baseline.loss_parameters)}
    if baseline.channels is None and baseline.represent is None:
        channels = 3
    elif frozen is not None:
        found = frozen_hash(frozen)
        if frozen_sha256 not in (None, found):
            raise UserError(f"the frozen model ({baseline.needs}) is not the one this '{name}' detector was trained "
                            "with; restore that model or train the detector again")
        channels, frozen_sha256 = baseline.channels(frozen), found
        represent = baseline.represent and baseline.represent(frozen, used)
        if represent and cache is not None:
            precision = effective_precision(frozen.precision, frozen.device) if hasattr(frozen, "precision") else "fp32"
            represent = FeatureCache(represent, cache, name, weights=found, precision=precision,
                                     parameters={key: used[key] for key in baseline.parameters})
    elif channels is None:
        raise UserError(f"baseline '{name}' needs a frozen model ({baseline.needs}); pass it as `frozen`")
    settings = {"name": name, "detector": {key: detector[key] for key in BACKBONE_SETTINGS if key in detector},
                "size": size, "options": used, "channels": channels, "frozen_sha256": frozen_sha256}
    network = baseline.build(detector, size, channels, seed)
    return BaselineDetector(network, represent, settings, baseline.needs if baseline.represent else "none")


def builder(find_frozen, cache=None):
    """The function that `anl.models.checkpoint.load` needs for networks of kind "baseline".

    find_frozen : function (needs, options) -> the frozen model of a saved baseline, or None. cache : see `build`.
    """
    def rebuild(**settings):
        baseline = get(settings["name"])
        frozen = find_frozen(baseline.needs, settings["options"]) if baseline.represent else None
        return build(**settings, frozen=frozen, cache=cache)
    return rebuild


def frozen_hash(frozen):
    """Hash of a frozen model's weights: of a NoisePrior, an Encoder, a module, or a list of such."""
    if isinstance(frozen, list):
        return weights_hash(*(frozen_hash(model) for model in frozen))
    if hasattr(frozen, "alphas_cumprod"):
        return weights_hash(frozen.unet, frozen.vae, frozen.prompt, frozen.alphas_cumprod, frozen.prediction_type,
                            None if frozen.vae is None else [frozen.vae.config.scaling_factor,
                                                             frozen.vae.config.shift_factor])
    return weights_hash(frozen.model, frozen.name) if isinstance(frozen, univfd.Encoder) else weights_hash(frozen)
