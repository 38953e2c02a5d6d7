"""Every way a source can fail to be a prior is one clear line; nothing is fetched that was not written as a hub id."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from anl.io import UserError, sha256_of
from anl.models import prior_loading
from anl.models.prior import NoisePrior
from anl.models.prior_loading import PRESETS, PROMPT_FILE, locate, overlap_warnings, read_prior, read_prompt
from tests import tiny_priors
from tests.tiny_hub import COMMIT
from tests.tiny_priors import edit

WEIGHTS = "diffusion_pytorch_model.safetensors"
OTHER = "f" * 40
TOKENS, WIDTH = tiny_priors.PROMPT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    return {"pixel": tiny_priors.pixel_folder(root / "pixel"), "latent": tiny_priors.latent_folder(root / "latent")}


@pytest.fixture
def folders(made, tmp_path):
    """Copies to damage."""
    return {kind: shutil.copytree(folder, tmp_path / kind) for kind, folder in made.items()}


def change(path, **tensors):
    """Set tensors of a safetensors file; None removes one."""
    held = {**load_file(path), **tensors}
    save_file({key: value for key, value in held.items() if value is not None}, path, metadata={"format": "pt"})


def as_pickle(part):
    torch.save(load_file(part / WEIGHTS), part / "diffusion_pytorch_model.bin")
    (part / WEIGHTS).unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def scheduler(folder, **changes):
    edit(folder / "scheduler/scheduler_config.json", **changes)


def unet(folder, **changes):
    edit(folder / "unet/config.json", **changes)


BAD = {
    "no unet": ("pixel", lambda f: shutil.rmtree(f / "unet"),
                "pixel holds no diffusion prior: unet/ is missing; get .*dvc pull"),
    "no scheduler": ("pixel", lambda f: shutil.rmtree(f / "scheduler"), "no diffusion prior: scheduler/ is missing"),
    "no vae": ("latent", lambda f: shutil.rmtree(f / "vae"), "latent/vae/config.json is missing; get the whole folder"),
    "no config": ("pixel", lambda f: (f / "unet/config.json").unlink(), "pixel/unet/config.json is missing; get"),
    "no weights": ("pixel", lambda f: (f / "unet" / WEIGHTS).unlink(),
                   "pixel/unet: diffusion.*safetensors is missing, and pickles are never opened; get"),
    "broken config": ("pixel", lambda f: (f / "unet/config.json").write_text("{"),
                      "unet/config.json cannot be read as JSON"),
    "list config": ("pixel", lambda f: (f / "unet/config.json").write_text("[]"),
                    "unet/config.json is not a JSON object"),
    "truncated": ("pixel", lambda f: cut(f / "unet" / WEIGHTS), "pixel/unet: the weights or config.json are damaged"),
    "pickle": ("pixel", lambda f: as_pickle(f / "unet"), "safetensors is missing, and pickles are never opened; get"),
    "other class": ("pixel", lambda f: unet(f, _class_name="UNet1DModel"),
                    "has class UNet1DModel; a prior is one of UNet2D"),
    "other vae": ("latent", lambda f: edit(f / "vae/config.json", _class_name="VQModel"),
                  "class VQModel, not AutoencoderKL"),
    "latents without prompt": ("pixel", lambda f: (f / "vqvae").mkdir(), "has vqvae/ next to a UNet2DModel"),
    "standardised latents": ("latent", lambda f: edit(f / "vae/config.json", latents_mean=[0, 0, 0, 0]),
                             "latents_mean"),
    "grey vae": ("latent", lambda f: edit(f / "vae/config.json", in_channels=1), "in_channels is 1; images have 3"),
    "class-conditional": ("pixel", lambda f: unet(f, num_class_embeds=10),
                          "num_class_embeds is 10; only unconditional"),
    "inpainting": ("latent", lambda f: unet(f, in_channels=9),
                   "in_channels is 9, but its images or latents have 4 channels"),
    "out_channels": ("pixel", lambda f: unet(f, out_channels=4), "out_channels is 4; it must be 3, or 6 with learned"),
    "several prompts": ("latent", lambda f: unet(f, cross_attention_dim=[8, 8]),
                        "cross_attention_dim is .*; one number"),
    "unknown block": ("pixel", lambda f: unet(f, down_block_types=["NoBlock", "NoBlock"]),
                      "do not fit each other.*NoBlock"),
    "missing tensor": ("pixel", lambda f: change(f / "unet" / WEIGHTS, **{"conv_in.bias": None}),
                       "pixel/unet: the weights do not fit config.json: 1 missing, first conv_in.bias; get both"),
    "strange tensors": ("pixel", lambda f: change(f / "unet" / WEIGHTS, extra=torch.zeros(1), more=torch.zeros(1)),
                        "2 unexpected, first extra"),
    "other shape": ("pixel", lambda f: change(f / "unet" / WEIGHTS, **{"conv_in.bias": torch.zeros(9)}),
                    "conv_in.bias expected"),
    "NaN": ("pixel", lambda f: change(f / "unet" / WEIGHTS, **{"conv_in.bias": torch.full((8,), float("nan"))}),
            "pixel/unet: the weight conv_in.bias holds NaN"),
    "flow matching": ("pixel", lambda f: scheduler(f, _class_name="FlowMatchEulerDiscreteScheduler"),
                      "no schedule with alphas_cumprod .*FlowMatchEuler"),
    "flow sigmas": ("pixel", lambda f: scheduler(f, _class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True),
                    "not supported, nor are flow sigmas"),
    "other scheduler": ("pixel", lambda f: scheduler(f, _class_name="UNet2DModel"),
                        "no schedule .*UNet2DModel.*; correct"),
    "unknown scheduler": ("pixel", lambda f: scheduler(f, _class_name="Slow"), "no schedule with .*Slow.*; correct it"),
    "prediction type": ("pixel", lambda f: scheduler(f, prediction_type="x0"),
                        "prediction_type 'x0' is not supported, .*; it must be"),
    "bad betas": ("pixel", lambda f: scheduler(f, beta_schedule="none"), "no schedule with alphas_cumprod .*none"),
    "no signal": ("pixel", lambda f: scheduler(f, beta_end=1.0), "between 0 and 1; correct"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_line_and_stays_as_it_is(folders, case, capfd):
    kind, damage, message = BAD[case]
    damage(folders[kind])
    before = sha256_of(folders[kind])
    with pytest.raises(UserError, match=message) as problem:
        NoisePrior.load(folders[kind])
    text = str(problem.value)
    assert "\n" not in text and len(text) < 480 and str(folders[kind]) in text
    assert capfd.readouterr() == ("", ""), "diffusers' own warnings are not printed"
    assert sha256_of(folders[kind]) == before


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_any_ddpm_like_scheduler_gives_its_schedule(made, folders, name):
    scheduler(folders["pixel"], _class_name=name)
    expected = read_prior(made["pixel"], "pixel")[1].alphas_cumprod
    assert torch.equal(read_prior(folders["pixel"], "pixel")[1].alphas_cumprod, expected)


def test_older_repositories_keep_everything_at_the_top(made, tmp_path):
    """As google/ddpm-cifar10-32 does."""
    shutil.copytree(made["pixel"] / "unet", tmp_path / "flat")
    shutil.copy(made["pixel"] / "scheduler/scheduler_config.json", tmp_path / "flat")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(NoisePrior.load(tmp_path / "flat").noise(x, 1), NoisePrior.load(made["pixel"]).noise(x, 1))


def test_shards_are_read_and_a_missing_one_is_refused(made, folders):
    unet = read_prior(made["pixel"], "pixel")[0]
    (folders["pixel"] / "unet" / WEIGHTS).unlink()
    unet.save_pretrained(folders["pixel"] / "unet", max_shard_size="10KB")
    shards = sorted((folders["pixel"] / "unet").glob("*-of-*.safetensors"))
    again = read_prior(folders["pixel"], "sharded")[0].state_dict()
    assert len(shards) > 1 and all(torch.equal(again[key], value) for key, value in unet.state_dict().items())
    shards[-1].unlink()
    with pytest.raises(UserError, match="unet: the weights or config.json are damaged"):
        NoisePrior.load(folders["pixel"])


def test_half_precision_weights_become_float32(made, folders):
    read_prior(made["pixel"], "pixel")[0].half().save_pretrained(folders["pixel"] / "unet")
    assert {value.dtype for value in NoisePrior.load(folders["pixel"]).unet.state_dict().values()} == {torch.float32}


# ---- the empty prompt
@pytest.mark.parametrize("tensors, message", [
    ({"other": torch.zeros(1, 2, WIDTH)}, f"prior/{PROMPT_FILE} holds no tensor `embedding`"),
    ({"embedding": torch.zeros(1, 2, WIDTH + 1)}, r"must be \(1, L, 8\), .* and has shape \(1, 2, 9\)"),
    ({"embedding": torch.full((1, 2, WIDTH), float("nan"))}, "must be .* finite")])
def test_a_bad_stored_prompt(tmp_path, tensors, message):
    save_file(tensors, tmp_path / PROMPT_FILE)
    with pytest.raises(UserError, match=message):
        read_prompt(tmp_path, "prior", WIDTH)


def test_the_text_encoder_gives_the_embedding_of_the_padded_empty_prompt(tmp_path):
    from transformers import CLIPTextModel

    folder = tiny_priors.latent_folder(tmp_path, prompt=False)
    tiny_priors.text_encoder(folder)
    tokens = torch.tensor([[10, *[11] * (TOKENS - 1)]])  # start, then end to the full length
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(folder / "text_encoder")(tokens)[0]
    torch.testing.assert_close(NoisePrior.load(folder).prompt, expected)
    path = folder / "text_encoder/model.safetensors"
    change(path, **{min(key for key in load_file(path) if "final_layer_norm" in key): None})
    with pytest.raises(UserError, match="text_encoder: the weights lack .*final_layer_norm"):
        NoisePrior.load(folder)
    path.rename(folder / "text_encoder/pytorch_model.bin")
    with pytest.raises(UserError, match=r"text_encoder/model\*.safetensors is missing; get the whole folder"):
        NoisePrior.load(folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match=r"tokenizer/\*.json is missing; get the whole folder, .* or put"):
        NoisePrior.load(folder)


# ---- sources
@pytest.fixture
def downloads(monkeypatch):
    """Replaces the hub: a list of what was asked for; set `answer` to a folder or an exception."""
    class Downloads(list):
        answer = "/nowhere"

        def fetch(self, repo, revision, allow_patterns):
            self.append((repo, revision))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    asked = Downloads()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked.fetch)
    return asked


def test_a_folder_is_itself_even_where_it_looks_like_a_hub_id(tmp_path, monkeypatch, downloads):
    (tmp_path / "models/prior").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("models/prior") == (Path("models/prior"), "models/prior") and locate(tmp_path)[0] == tmp_path
    with pytest.raises(UserError, match="models/prior is a folder, which has no revision"):
        locate("models/prior", COMMIT)
    assert downloads == []


@pytest.mark.parametrize("source, revision", [("models/detektor", COMMIT), ("/no/such/place", None), ("nothing", None),
                                              (Path("models/prior"), None)])
def test_a_missing_folder_is_never_fetched(source, revision, tmp_path, monkeypatch, downloads):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError,
                       match=f"{source} holds no diffusion prior: there is no such folder; .*`dvc pull") as problem:
        locate(source, revision)
    hint = f"write hf://{source} and its revision" in str(problem.value)
    assert hint == (str(source).count("/") == 1) and downloads == []


@pytest.mark.parametrize("source, revision", [("hf://tiny/prior", None), ("hf://tiny/prior", "main"),
                                              ("hf://tiny/prior", "0123456"), ("hf://tiny/prior", OTHER.upper()),
                                              ("adm-imagenet-256", None)])
def test_the_hub_needs_a_full_commit(source, revision, downloads):
    with pytest.raises(UserError, match=f"{source}: .*<40-hex commit>, because a branch can change"):
        locate(source, revision)
    with pytest.raises(UserError, match="hf://tiny is not a hub id; write hf://owner/name"):
        locate("hf://tiny", COMMIT)
    assert downloads == []


@pytest.mark.parametrize("source, revision, asked", [
    ("hf://tiny/prior", COMMIT, ("tiny/prior", COMMIT)),
    ("ddpm-cifar10-32", None, ("google/ddpm-cifar10-32", PRESETS["ddpm-cifar10-32"].revision)),
    ("ddpm-cifar10-32", OTHER, ("google/ddpm-cifar10-32", OTHER))])
def test_the_hub_is_asked_for_one_commit(source, revision, asked, downloads):
    assert locate(source, revision)[1] == f"{asked[0]}@{asked[1][:12]}" and downloads == [asked]


def test_a_failed_download_is_one_line(downloads):
    downloads.answer = OSError(28, "No space left on device\nmore")
    with pytest.raises(UserError, match="tiny/prior at 0123456789ab cannot be downloaded .*No space.*; check") as raised:
        locate("hf://tiny/prior", COMMIT)
    assert "\n" not in str(raised.value)


def test_neither_pickles_nor_variants_nor_single_file_checkpoints_are_fetched():
    def fetched(file):
        return any(fnmatch(file, pattern) for pattern in prior_loading.PATTERNS)

    for file in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "config.json", "tokenizer/merges.txt",
                 "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "text_encoder/model.safetensors",
                 "scheduler/scheduler_config.json", "vae/diffusion_pytorch_model.safetensors"):
        assert fetched(file), file
    for file in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
                 "modeling_ddpm.py",
                 "v1-5-pruned.safetensors", "safety_checker/model.safetensors", "text_encoder/model.fp16.safetensors"):
        assert not fetched(file), file


def test_presets_warn_about_benchmarks_they_know():
    assert any("genimage" in line and "ImageNet" in line for line in overlap_warnings("adm-imagenet-256"))
    assert len(overlap_warnings("ddpm-cifar10-32")) == 1 and overlap_warnings("models/prior") == []
