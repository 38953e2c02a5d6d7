"""Every way a folder can be no prior is one clear line, and nothing in the folder changes."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from anl import prior_parts
from anl.errors import UserError
from anl.files import sha256_of
from anl.prior import NoisePrior
from tests import tiny_priors
from tests.tiny_priors import edit

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    return {"pixel": tiny_priors.pixel_folder(root / "pixel"), "latent": tiny_priors.latent_folder(root / "latent")}


@pytest.fixture
def folders(made, tmp_path):
    """Copies to damage."""
    return {kind: shutil.copytree(folder, tmp_path / kind) for kind, folder in made.items()}


def change(path, **tensors):
    """Set tensors of a safetensors file; None takes one out."""
    held = {**load_file(path), **tensors}
    save_file({key: value for key, value in held.items() if value is not None}, path, metadata={"format": "pt"})


def as_pickle(part):
    torch.save(load_file(part / WEIGHTS), part / "diffusion_pytorch_model.bin")
    (part / WEIGHTS).unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


BAD = {
    # a part is missing
    "no unet": ("pixel", lambda f: shutil.rmtree(f / "unet"), "pixel holds no diffusion prior: unet/ is missing; get .*"),
    "no scheduler": ("pixel", lambda f: shutil.rmtree(f / "scheduler"), "no diffusion prior: scheduler/ is missing"),
    "no vae": ("latent", lambda f: shutil.rmtree(f / "vae"), "latent: vae/ is missing, and UNet2DConditionModel .*whole"),
    "no config": ("pixel", lambda f: (f / "unet/config.json").unlink(), "pixel/unet/config.json is missing; get"),
    "no scheduler config": ("pixel", lambda f: (f / "scheduler/scheduler_config.json").unlink(),
                            "scheduler/scheduler_config.json is missing"),
    "no weights": ("pixel", lambda f: (f / "unet" / WEIGHTS).unlink(), "pixel/unet/diffusion.*safetensors is missing: no"),
    "no vae weights": ("latent", lambda f: (f / "vae" / WEIGHTS).unlink(), "latent/vae/diffusion.*safetensors is missing"),
    # a file cannot be read
    "broken config": ("pixel", lambda f: (f / "unet/config.json").write_text("{"), "unet/config.json cannot be read as"),
    "list config": ("pixel", lambda f: (f / "unet/config.json").write_text("[]"), "unet/config.json is no JSON mapping"),
    "truncated": ("pixel", lambda f: cut(f / "unet" / WEIGHTS), "unet/diffusion_.* cannot be read .*damaged or cut off"),
    "pickle": ("pixel", lambda f: as_pickle(f / "unet"),
               r"unet holds its weights as a pickle \(diffusion_pytorch_model.bin\).*safe_serialization=True\)"),
    "vae pickle": ("latent", lambda f: as_pickle(f / "vae"), "latent/vae holds its weights as a pickle"),
    # another kind of model
    "other class": ("pixel", lambda f: edit(f / "unet/config.json", _class_name="UNet1DModel"),
                    "unet/config.json is of class UNet1DModel; a prior is one of UNet2DModel, UNet2DConditionModel"),
    "no class": ("pixel", lambda f: edit(f / "unet/config.json", _class_name=None), "is of class None; a prior is"),
    "other vae": ("latent", lambda f: edit(f / "vae/config.json", _class_name="VQModel"), "class VQModel; a latent prior"),
    "latents without prompt": ("pixel", lambda f: (f / "vqvae").mkdir(), "has vqvae/ beside a UNet2DModel"),
    "standardised latents": ("latent", lambda f: edit(f / "vae/config.json", latents_mean=[0, 0, 0, 0]), "latents_mean"),
    "grey vae": ("latent", lambda f: edit(f / "vae/config.json", in_channels=1), "in_channels is 1; images have 3"),
    "class-conditional": ("pixel", lambda f: edit(f / "unet/config.json", num_class_embeds=10),
                          "num_class_embeds is 10; only unconditional models"),
    "more conditions": ("latent", lambda f: edit(f / "unet/config.json", addition_embed_type="text_time"),
                        "addition_embed_type is text_time"),
    "in_channels": ("pixel", lambda f: edit(f / "unet/config.json", in_channels=6),
                    "in_channels is 6, but an image has 3 channels"),
    "inpainting": ("latent", lambda f: edit(f / "unet/config.json", in_channels=9),
                   "in_channels is 9, but its vae's latents have 4 channels; another kind of model .inpainting"),
    "out_channels": ("pixel", lambda f: edit(f / "unet/config.json", out_channels=4),
                     "out_channels is 4; it must be 3, or 6 with learned variances"),
    "several prompts": ("latent", lambda f: edit(f / "unet/config.json", cross_attention_dim=[8, 8]),
                        "cross_attention_dim is .*; one number"),
    "unknown block": ("pixel", lambda f: edit(f / "unet/config.json", down_block_types=["NoBlock", "NoBlock"]),
                      "unet/config.json does not make a UNet2DModel .*NoBlock"),
    # weights of another config
    "missing tensor": ("pixel", lambda f: change(f / "unet" / WEIGHTS, **{"conv_in.bias": None}),
                       "pixel/unet: the weights do not fit config.json: they lack conv_in.bias; get both"),
    "missing vae tensor": ("latent", lambda f: change(f / "vae" / WEIGHTS, **{"quant_conv.bias": None}), "lack quant_conv"),
    "strange tensor": ("pixel", lambda f: change(f / "unet" / WEIGHTS, extra=torch.zeros(1), more=torch.zeros(1)),
                       "they hold, beyond the config, extra and 1 more"),
    "other shape": ("pixel", lambda f: change(f / "unet" / WEIGHTS, **{"conv_in.bias": torch.zeros(9)}),
                    "the weights do not fit config.json .*conv_in.bias expected shape"),
    "other width": ("pixel", lambda f: edit(f / "unet/config.json", block_out_channels=[16, 16]),
                    "the weights do not fit config.json"),
    "NaN": ("pixel", lambda f: change(f / "unet" / WEIGHTS, **{"conv_in.bias": torch.full((8,), float("nan"))}),
            "pixel/unet: the weight conv_in.bias holds NaN or infinite"),
    "inf": ("latent", lambda f: change(f / "vae" / WEIGHTS, **{"quant_conv.bias": torch.full((8,), float("inf"))}),
            "latent/vae: the weight quant_conv.bias holds NaN"),
    # the schedule
    "flow matching": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json",
                                              _class_name="FlowMatchEulerDiscreteScheduler"),
                      "FlowMatchEulerDiscreteScheduler has no alphas_cumprod"),
    "sigmas only": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"),
                    "EDMEulerScheduler has no alphas_cumprod, as flow matching and sigma-only"),
    "flow sigmas": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json", use_flow_sigmas=True,
                                            _class_name="DPMSolverMultistepScheduler"), "DPMSolver.* no alphas_cumprod"),
    "unknown scheduler": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json", _class_name="MyScheduler"),
                          "names MyScheduler, which is no scheduler of diffusers"),
    "no scheduler class": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json", _class_name="UNet2DModel"),
                           "names UNet2DModel, which is no scheduler"),
    "prediction type": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="x0"),
                        "prediction_type 'x0' is unknown; it must be one of epsilon, v_prediction, sample"),
    "bad betas": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json", beta_schedule="none"),
                  "scheduler_config.json does not make a DDPMScheduler"),
    "no signal": ("pixel", lambda f: edit(f / "scheduler/scheduler_config.json", beta_end=1.0), "between 0 and 1; mend"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_line_and_stays_as_it_is(folders, case, capfd):
    kind, damage, message = BAD[case]
    damage(folders[kind])
    before = sha256_of(folders[kind])
    with pytest.raises(UserError, match=message) as problem:
        NoisePrior.load(folders[kind])
    text = str(problem.value)
    assert "\n" not in text and len(text) < 420 and str(folders[kind]) in text
    assert capfd.readouterr() == ("", ""), "diffusers' own warnings are not shown beside the line"
    assert sha256_of(folders[kind]) == before


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler",
                                       "DPMSolverMultistepScheduler"])
def test_the_schedule_of_any_ddpm_like_scheduler(made, folders, scheduler):
    edit(folders["pixel"] / "scheduler/scheduler_config.json", _class_name=scheduler)
    expected = prior_parts.read(made["pixel"], "pixel")[1].alphas_cumprod
    assert torch.equal(prior_parts.read(folders["pixel"], "pixel")[1].alphas_cumprod, expected)


def test_older_repositories_keep_everything_at_the_top(made, tmp_path):
    """As google/ddpm-cifar10-32 does."""
    shutil.copytree(made["pixel"] / "unet", tmp_path / "flat")
    shutil.copy(made["pixel"] / "scheduler/scheduler_config.json", tmp_path / "flat")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(NoisePrior.load(tmp_path / "flat").noise(x, 1), NoisePrior.load(made["pixel"]).noise(x, 1))
    (tmp_path / "flat/scheduler_config.json").unlink()
    with pytest.raises(UserError, match="flat/scheduler_config.json is missing"):
        NoisePrior.load(tmp_path / "flat")


def test_shards_are_read_and_a_missing_one_is_named(made, tmp_path):
    folder = shutil.copytree(made["pixel"], tmp_path / "sharded")
    (folder / "unet" / WEIGHTS).unlink()
    unet = prior_parts.read(made["pixel"], "pixel")[0]
    unet.save_pretrained(folder / "unet", max_shard_size="10KB")
    shards = sorted(path.name for path in (folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    again = prior_parts.read(folder, "sharded")[0].state_dict()
    assert all(torch.equal(again[key], value) for key, value in unet.state_dict().items())
    (folder / "unet" / shards[-1]).unlink()
    with pytest.raises(UserError, match=f"unet/{shards[-1]} is missing"):
        NoisePrior.load(folder)


def test_old_names_of_attention_weights_are_read(tmp_path):
    """Weights of 2022 call an attention's parts query, key, value and proj_attn; diffusers renames them."""
    folder = tiny_priors.pixel_folder(tmp_path, down_block_types=("DownBlock2D", "AttnDownBlock2D"), add_attention=True,
                                      attention_head_dim=4)
    held = load_file(folder / "unet" / WEIGHTS)
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    x = torch.rand(1, 3, 16, 16)
    expected = NoisePrior.load(folder).noise(x, 1)
    old = {}
    for key, value in held.items():
        for new, name in names.items():
            key = key.replace(new, name)
        old[key] = value
    assert set(old) != set(held)
    save_file(old, folder / "unet" / WEIGHTS, metadata={"format": "pt"})
    assert torch.equal(NoisePrior.load(folder).noise(x, 1), expected)


def test_half_precision_weights_become_float32(made, folders):
    unet = prior_parts.read(made["pixel"], "pixel")[0]
    unet.half().save_pretrained(folders["pixel"] / "unet")
    frozen = NoisePrior.load(folders["pixel"], precision="fp32")
    assert {value.dtype for value in frozen.unet.state_dict().values()} == {torch.float32}
    assert frozen.noise(torch.rand(1, 3, 16, 16), 1).dtype == torch.float32
