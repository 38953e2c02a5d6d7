"""Prior and generators on the training reals of a public data set, each put in place whole."""

from pathlib import Path

from anl.errors import UserError
from anl.making import CACHE, config_dict, fetch_prior, whole_folder
from anl.prior_training import fit_prior
from anl.published.split import training_reals


def make_prior(params, name="prior", cache=CACHE):
    """Train the diffusion prior into `published.models`/prior, or fetch the one that `prior.source` names; returns its path.

    The same training as the embedded benchmark's (`anl.prior_training`): a published image of the crop's own size is a
    source with one crop. Raises UserError on another name, since a public set has one prior.
    """
    if name != "prior":
        raise UserError(f"profile {params.profile} has no prior '{name}'; leave the name out")
    folder = Path(params.models_folder) / name
    if params.prior.source is not None:
        return fetch_prior(params.prior, params.benchmark.size, folder)
    with whole_folder(folder) as temporary:
        fit_prior(training_reals(params), config_dict(params.prior), temporary, cache=cache,
                  seed=params.seed + params.prior.seed_offset)
    return folder


def make_model(name, params, cache=CACHE):
    """Train the unconditional generator `name` on the training reals into `published.models`/name; returns its path."""
    from anl.published.generators import MODELS, fit_model

    if name not in MODELS or name not in params.models:
        raise UserError(f"there is no generator model '{name}'; choose one of {', '.join(params.models)}")
    with whole_folder(Path(params.models_folder) / name) as temporary:
        fit_model(name, training_reals(params), config_dict(params.models[name]), temporary, seed=params.seed, cache=cache)
    return Path(params.models_folder) / name
