import copy

import pytest

from anl import params
from anl.errors import UserError
from anl.prior import NoisePrior
from anl.published import making


def test_prior_and_generators_are_made_whole_in_the_profiles_own_folder(public, tmp_path):
    value = copy.deepcopy(public.settings)
    value["published"]["models"] = str(tmp_path / "models")
    tiny = params.from_dict(value, "tiny")
    assert making.make_prior(tiny, cache=tmp_path / "cache") == tmp_path / "models/prior"
    NoisePrior.load(tmp_path / "models/prior").check_size(32)
    assert (making.make_model("vae", tiny, tmp_path / "cache") / "curve.csv").is_file()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["prior", "vae"]


def test_unknown_names_are_refused(public):
    with pytest.raises(UserError, match="no generator model 'pixel'; choose one of gan, vae, ddpm"):
        making.make_model("pixel", public.params)
    with pytest.raises(UserError, match="profile cifake has no prior 'other_prior'"):
        making.make_prior(public.params, "other_prior")
