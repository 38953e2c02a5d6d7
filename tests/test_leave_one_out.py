import collections
import dataclasses

import pytest

from anl import benchmark, leave_one_out, predict, runs, targets, train
from anl.benchmark import REAL
from anl.errors import UserError
from anl.leave_one_out import OTHERS, partner, partners

# runs of the profile in tests/conftest.py, its paths shortened: their identities from before families could be left out
KNOWN = {"plain-s0": "63b3f9d87d53", "prior-t1-affinity-s1": "2c34bc409f54"}


@pytest.fixture(scope="module")
def without_vae(world):
    """(parameters, manifest) of the benchmark without the family vae, made once."""
    leave_one_out.build(world.params, "vae", world.models, world.cache)
    own = leave_one_out.without(world.params, "vae")
    return own, benchmark.read_manifest(own.benchmark.folder)


def place(rows):
    return rows["sample_id"].str.split("/", n=1).str[1]


def test_partners_are_dealt_in_equal_shares_whatever_is_left_out():
    families, places = ["a", "b", "c", "d"], [f"photo@{i}" for i in range(120)]
    found = partners(places, families, 0, "train")
    assert found == partners(places[::-1], families, 0, "train") != partners(places, families, 1, "train")
    assert found != partners(places, families, 0, "val")
    for left_out in families:
        shares = collections.Counter(partner(pair, left_out) for pair in found.values())
        assert shares == dict.fromkeys(set(families) - {left_out}, 40)
    same = [pair for pair in found.values() if "a" != pair[0] != "b"]
    assert all(partner(pair, "a") == partner(pair, "b") for pair in same) and len(same) == 60


def test_every_real_patch_has_one_partner_of_another_family(world, without_vae):
    own, manifest = without_vae
    main = benchmark.read_manifest(world.params.benchmark.folder)
    real, others = (manifest[manifest["generator"] == name] for name in (REAL, OTHERS))
    columns = ["sample_id", "sha256", "split", "cluster"]
    assert real[columns].values.tolist() == main.loc[main["generator"] == REAL, columns].values.tolist()
    assert set(others["split"]) == {"train", "val"} and (others["label"] == 1).all()
    assert sorted(place(others)) == sorted(place(real[real["split"] != "test"]))
    assert set(others["family"]) == set(world.params.families) - {"vae"}
    assert set(manifest[manifest["split"] == "test"]["generator"]) == {REAL, *world.params.families}
    assert benchmark.read_images(own.benchmark.folder, manifest).shape == (len(manifest), 32, 32, 3)
    # images that the main benchmark has are the very same, and a training image is of the patch it is paired with
    shared = others[(others["split"] == "val") | (others["family"] == "ddim")]
    digests = main.set_index("sample_id")["sha256"]
    assert (shared["sha256"].to_numpy() == digests[(shared["family"] + "/" + place(shared)).to_list()].to_numpy()).all()
    made = others[(others["split"] == "train") & others["family"].isin(["vq", "latent"])]
    reals = real.set_index("sample_id").loc[[f"{REAL}/{name}" for name in place(made)]].reset_index()
    gaps = [abs(a.astype(int) - b).mean() for a, b in zip(benchmark.read_images(own.benchmark.folder, made),
                                                         benchmark.read_images(own.benchmark.folder, reals), strict=True)]
    apart = [abs(a.astype(int) - b).mean() for a, b in zip(benchmark.read_images(own.benchmark.folder, made),
                                                          benchmark.read_images(own.benchmark.folder, reals[::-1]), strict=True)]
    assert sum(gaps) < sum(apart)


def test_a_second_family_takes_the_images_made_for_the_first(world, without_vae, monkeypatch):
    monkeypatch.setattr(leave_one_out, "regenerations", lambda *_: pytest.fail("regenerated twice"))
    manifest = leave_one_out.build(world.params, "ddim", world.models, world.cache)
    assert set(manifest.loc[manifest["generator"] == OTHERS, "family"]) == set(world.params.families) - {"ddim"}


def test_the_benchmark_is_made_again_only_if_it_is_of_another_rule(world, without_vae, monkeypatch):
    built = []
    monkeypatch.setattr(leave_one_out, "build", lambda params, family, *_: built.append((params.seed, family)))
    assert leave_one_out.prepared(world.params, "vae", world.models, world.cache) == without_vae[0] and not built
    leave_one_out.prepared(dataclasses.replace(world.params, seed=5), "vae", world.models, world.cache)
    leave_one_out.prepared(world.params, "flow", world.models, world.cache)
    assert built == [(5, "vae"), (world.params.seed, "flow")]


def test_a_detector_trains_on_the_others_and_meets_the_left_out_family_in_testing_alone(world, without_vae, monkeypatch, tmp_path):
    own, _ = without_vae
    monkeypatch.chdir(world.root)
    spec = runs.main_specs(own)[2]
    rows = targets.training_rows(own)
    assert set(rows["generator"]) == {REAL, OTHERS} and "vae" not in set(rows["family"])
    data = train._load_data(spec, own)
    assert all(fake == f"{OTHERS}/{real.split('/', 1)[1]}" for real, fake in zip(
        data["samples"][data["real"]], data["samples"][data["fake"][:, 0]], strict=True))
    folder = runs.train_run(spec, own, "main", root=tmp_path)
    assert folder == tmp_path / "tiny/leave_one_out/vae/main/prior-t1-affinity-s0"
    assert (world.root / "targets/tiny/leave_one_out/vae/prior-t1.safetensors").is_file()
    table = predict.read_predictions(folder)
    assert set(table[table["split"] == "val"]["generator"]) == {REAL, OTHERS}
    assert set(table[table["split"] == "test"]["generator"]) == {REAL, *world.params.families}
    assert runs.find_run(spec, own, tmp_path) == folder and runs.find_run(spec, world.params, tmp_path) is None


def test_what_the_profile_leaves_out_is_a_run_of_its_own(world):
    some = dataclasses.replace(world.params, runs=dataclasses.replace(world.params.runs, left_out=["vae", "flow"]))
    found = leave_one_out.specs(some)
    identities = {spec.identity(own) for own, specs in found.values() for spec in specs}
    identities |= {spec.identity(world.params) for spec in runs.main_specs(world.params)}
    assert list(found) == ["vae", "flow"] and len(identities) == 12


def test_runs_on_the_main_benchmark_keep_their_identity(world):
    placed = dataclasses.replace(
        world.params, data=dataclasses.replace(world.params.data, card="photos.csv", folder="photos"),
        benchmark=dataclasses.replace(world.params.benchmark, folder="benchmark"))
    found = {spec.slug: spec.identity(placed) for spec in runs.main_specs(placed)}
    assert {slug: found[slug] for slug in KNOWN} == KNOWN


def test_what_cannot_be_left_out_is_named(world):
    two = dataclasses.replace(world.params, families={name: world.params.families[name] for name in ("ddim", "vae")})
    with pytest.raises(UserError, match="no family 'gan' to leave out; choose one of ddim, ddpm"):
        leave_one_out.without(world.params, "gan")
    with pytest.raises(UserError, match="needs 3 or more"):
        leave_one_out.without(two, "vae")
    with pytest.raises(UserError, match="of a public data set"):
        leave_one_out.without(dataclasses.replace(world.params, published=object()), "vae")


def test_a_benchmark_of_other_photographs_is_named(world, tmp_path):
    fewer = dataclasses.replace(world.params.benchmark, patches=dataclasses.replace(world.params.benchmark.patches, train=1))
    with pytest.raises(UserError, match="holds patches that the photographs do not give"):
        leave_one_out.build(dataclasses.replace(world.params, benchmark=fewer), "vae", world.models, tmp_path)
