"""Stand-ins of the paper's data sets, in their own trees with their own names, and a tiny prior."""

import copy

import pytest
import yaml

from tests import tiny_priors
from tests.conftest import ROOT
from tests.data.trees import encoded, write

GENIMAGE = {"ADM": "imagenet_ai_0508_adm", "BigGAN": "imagenet_ai_0419_biggan", "glide": "imagenet_glide",
            "Midjourney": "imagenet_midjourney", "stable_diffusion_v_1_4": "imagenet_ai_0419_sdv4",
            "stable_diffusion_v_1_5": "imagenet_ai_0424_sdv5", "VQDM": "imagenet_ai_0419_vqdm", "wukong": "imagenet_ai_0424_wukong"}
FORENSYNTHS = ("biggan", "deepfake", "progan/airplane", "progan/bird", "stargan", "stylegan/bedroom")
DIFFUSION = {"lsun_bedroom": ("adm", "ddpm", "sdv1"), "imagenet": ("adm", "sdv1"), "celebahq": ("dalle2",)}
EACH = 4


def trees(root):
    """Write all four sets under `root`, EACH images a folder: photographs JPEG, generated PNG, of several sizes."""
    places = {}
    for generator, inner in GENIMAGE.items():
        side = 24 if generator == "BigGAN" else 48  # smaller than the crop, as BigGAN's 128 pixels are
        for split in ("train", "val"):
            places[f"genimage/{generator}/{inner}/{split}/nature"] = ("JPEG", 60)
            places[f"genimage/{generator}/{inner}/{split}/ai"] = ("PNG", side)
    for generator in FORENSYNTHS:
        places |= {f"forensynths/{generator}/0_real": ("PNG", 48), f"forensynths/{generator}/1_fake": ("PNG", 48)}
    for split in ("train", "val"):
        for name in ("airplane", "cat"):
            places |= {f"forensynths-train/{split}/{name}/0_real": ("PNG", 48),
                       f"forensynths-train/{split}/{name}/1_fake": ("PNG", 48)}
    for split in ("train", "val", "test"):
        for source, generators in DIFFUSION.items():
            places[f"diffusionforensics/images/{split}/{source}/real"] = ("JPEG", 52)
            places |= {f"diffusionforensics/images/{split}/{source}/{name}": ("PNG", 48) for name in generators}
    write(root, {f"{place}/{number}.{'jpg' if kind == 'JPEG' else 'png'}": encoded(
        1000 * index + number, kind, side, **({"quality": 96} if kind == "JPEG" else {}))
        for index, (place, (kind, side)) in enumerate(places.items()) for number in range(EACH)})


def tiny(root):
    """The real profile, shrunk: the same sets, protocols and views on crops of 32 pixels with tiny models."""
    value = copy.deepcopy(yaml.safe_load((ROOT / "profiles/paper.yaml").read_text()))
    value["folders"] = {"data": str(root / "sources"), "manifests": str(root / "manifests"), "runs": str(root / "runs"),
                        "results": str(root / "results")}
    value["prior"] |= {"source": str(root / "prior"), "batch_size": 4}
    value |= {"crop": 32, "backbones": {"tiny": {"model": "test_resnet", "stride": 8, "pretrained": False}}}
    value["detector"] |= {"patch": 4, "attention_dim": 8}
    value["training"] |= {"workers": 0}
    return value


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """(folder, path of its profile)."""
    root = tmp_path_factory.mktemp("paper")
    trees(root / "sources")
    tiny_priors.latent_folder(root / "prior")
    path = root / "paper.yaml"
    path.write_text(yaml.safe_dump(tiny(root), sort_keys=False))
    return root, path
