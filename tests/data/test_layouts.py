import pytest

from anl.data.generator_names import canonical, family
from anl.data.layouts import LAYOUTS, guess, place
from anl.data.walk import Folder
from anl.io import UserError

# data set -> (layout, its folders, {folder: (label, generator, split, source_real)})
TREES = {
    "ForenSynths": ("binary", ["test/progan/airplane/0_real", "test/progan/airplane/1_fake", "test/biggan/0_real",
                               "test/biggan/1_fake", "train/train/0_real", "train/cat/1_fake", "val/cat/1_fake"],
                    {"test/progan/airplane/1_fake": (1, "progan", "test", "progan"),
                     "test/biggan/0_real": (0, "real", "test", "biggan"),
                     "train/train/0_real": (0, "real", "train", "progan"), "val/cat/1_fake": (1, "progan", "val", "progan")}),
    "AIGCDetect": ("binary", ["progan/horse/0_real", "progan/horse/1_fake", "Midjourney/0_real", "Midjourney/1_fake"],
                   {"progan/horse/1_fake": (1, "progan", "test", "progan"),
                    "Midjourney/0_real": (0, "real", "test", "midjourney")}),
    "one generator": ("binary", ["0_real", "1_fake"], {"1_fake": (1, "root", "test", "root")}),
    "GenImage": ("genimage", ["stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/train/ai",
                              "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/train/nature",
                              "Midjourney/imagenet_midjourney/val/ai", "Midjourney/imagenet_midjourney/val/nature"],
                 {"stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/train/ai": (1, "sd14", "train", "sd14"),
                  "Midjourney/imagenet_midjourney/val/nature": (0, "real", "test", "midjourney")}),
    "GenImage, short": ("genimage", ["ADM/train/ai", "ADM/train/nature", "ADM/val/ai", "stable_diffusion_v_1_5/val/nature"],
                        {"ADM/train/ai": (1, "adm", "train", "adm"),
                         "stable_diffusion_v_1_5/val/nature": (0, "real", "test", "sd15")}),
    "GenImage, inner": ("genimage", ["imagenet_ai_0508_adm/train/ai", "imagenet_ai_0424_sdv5/val/nature"],
                        {"imagenet_ai_0508_adm/train/ai": (1, "adm", "train", "adm"),
                         "imagenet_ai_0424_sdv5/val/nature": (0, "real", "test", "sd15")}),
    "DiffusionForensics": ("diffusionforensics", ["images/train/lsun_bedroom/real", "images/test/imagenet/real/n01440764",
                                                  "images/test/imagenet/adm", "recons/test/imagenet/adm",
                                                  "dire/test/imagenet/adm"],
                           {"images/test/imagenet/real/n01440764": (0, "real", "test", "imagenet"),
                            "images/test/imagenet/adm": (1, "adm", "test", "imagenet")}),
    "UnivFD": ("univfd", ["diffusion_datasets/imagenet", "diffusion_datasets/laion", "diffusion_datasets/guided",
                          "diffusion_datasets/ldm_200_cfg"],
               {"diffusion_datasets/guided": (1, "adm", "test", "imagenet"),
                "diffusion_datasets/ldm_200_cfg": (1, "ldm_200_cfg", "test", "laion"),
                "diffusion_datasets/laion": (0, "real", "test", "laion")}),
    "UnivFD, labels": ("univfd", ["imagenet/0_real", "laion/0_real", "guided/1_fake", "dalle/1_fake"],
                       {"dalle/1_fake": (1, "dalle", "test", "laion"), "imagenet/0_real": (0, "real", "test", "imagenet")}),
    "UnivFD, NPR's copy": ("binary", ["guided/0_real", "guided/1_fake", "dalle/0_real", "dalle/1_fake"],
                           {"guided/0_real": (0, "real", "test", "adm")}),
    "DRCT-2M": ("drct", ["MSCOCO/train2017", "MSCOCO/val2017", "sd-turbo/train2017", "stable-diffusion-v1-4/val2017"],
                {"stable-diffusion-v1-4/val2017": (1, "sd14", "test", "mscoco"),
                 "MSCOCO/train2017": (0, "real", "train", "mscoco")}),
    "Synthbuster": ("synthbuster", ["real_RAISE_1k", "dalle3", "firefly", "stable-diffusion-xl"],
                    {"real_RAISE_1k": (0, "real", "test", "raise"), "stable-diffusion-xl": (1, "sdxl", "test", "raise")}),
    "WildRF": ("wildrf", ["train/0_real", "train/1_fake", "val/0_real", "val/1_fake", "test/reddit/0_real",
                          "test/reddit/1_fake", "test/twitter/1_fake"],
               {"train/1_fake": (1, "wild", "train", "wild"), "test/reddit/0_real": (0, "real", "test", "reddit")}),
    "AIGIBench": ("aigibench", ["train/car/0_real", "train/car/1_fake", "train/sdv1.4/0_real", "train/sdv1.4/1_fake",
                                "test/FLUX/0_real", "test/FLUX/1_fake"],
                  {"train/car/1_fake": (1, "progan", "train", "progan"), "train/sdv1.4/1_fake": (1, "sd14", "train", "sd14"),
                   "test/FLUX/0_real": (0, "real", "test", "flux")}),
    "CIFAKE": ("cifake", ["train/REAL", "train/FAKE", "test/REAL", "test/FAKE"],
               {"train/FAKE": (1, "sd14", "train", "cifar10"), "test/REAL": (0, "real", "test", "cifar10")}),
    "Community Forensics": ("community_forensics", ["coco/real", "stylegan2/fake", "FLUX.1-dev/fake"],
                            {"coco/real": (0, "real", "test", "coco"), "FLUX.1-dev/fake": (1, "flux.1-dev", "test", "")}),
    "FaceForensics++": ("deepfakebench", ["FaceForensics++/original_sequences/youtube/c23/frames/000",
                                          "FaceForensics++/original_sequences/youtube/c23/landmarks/000",
                                          "FaceForensics++/manipulated_sequences/Deepfakes/c23/frames/000_003",
                                          "FaceForensics++/manipulated_sequences/Deepfakes/c23/masks/000_003"],
                        {"FaceForensics++/original_sequences/youtube/c23/frames/000": (0, "real", "unsplit", "youtube"),
                         "FaceForensics++/manipulated_sequences/Deepfakes/c23/frames/000_003":
                             (1, "deepfakes", "unsplit", "")}),
    "Celeb-DF": ("deepfakebench", ["Celeb-DF-v2/Celeb-real/frames/id0_0000", "Celeb-DF-v2/Celeb-synthesis/frames/id0_id1_0"],
                 {"Celeb-DF-v2/Celeb-real/frames/id0_0000": (0, "real", "unsplit", "celeb-real"),
                  "Celeb-DF-v2/Celeb-synthesis/frames/id0_id1_0": (1, "celeb-synthesis", "unsplit", "")}),
    "own": ("generic", ["train/real/cats", "train/fake", "val/Real", "val/Fake"],
            {"train/real/cats": (0, "real", "train", "fake"), "val/Fake": (1, "fake", "val", "fake")}),
    "own, flat": ("generic", ["real", "generated"], {"generated": (1, "fake", "test", "fake")}),
    "jonasricker": ("per_generator", ["train/Real", "train/ADM", "test/Real", "test/DDPM"],
                    {"train/ADM": (1, "adm", "train", "real"), "test/Real": (0, "real", "test", "real")}),
}


def folders(paths, files=10):
    return {path: Folder(files, "a.png") for path in paths}


@pytest.mark.parametrize("name", TREES)
def test_published_trees_are_recognised(name):
    wanted, paths, places = TREES[name]
    layout, why = guess(folders([*paths, ""], 10), "root", lambda path: (32, 32))
    assert layout.name == wanted and "% of the files" in why
    for path, expected in places.items():
        found = place(layout, path, "root")
        assert (found.label, found.generator, found.split, found.source_real) == expected
        assert found.family == family(found.generator)


def test_every_layout_is_tested():
    assert {wanted for wanted, _, _ in TREES.values()} == set(LAYOUTS) - {"photographs"}


def test_photographs_are_indexed_when_asked_for_and_never_guessed():
    for folder in ("", "Faces", "a/b"):
        assert place(LAYOUTS["photographs"], folder, "root")[:4] == (0, "real", "real", "unsplit")
    with pytest.raises(UserError, match="no layout with both real and generated images"):
        guess(folders(["Faces", "a/b"]), "root")


def test_derived_images_are_excluded():
    assert place(LAYOUTS["diffusionforensics"], "recons/test/imagenet/adm", "root").startswith("computed from")
    assert "masks" in place(LAYOUTS["deepfakebench"], TREES["FaceForensics++"][1][3], "root")


def test_image_size_distinguishes_cifake_from_generic_trees():
    layout, _ = guess(folders(TREES["CIFAKE"][1]), "root", lambda path: (256, 256))
    assert layout.name == "generic"


@pytest.mark.parametrize("paths, words", [
    (["ADM/train/ai", "ADM/train/nature", "progan/0_real", "progan/1_fake"],
     "2 layouts fit .*--layout binary or --layout genimage"),
    (["real", "fake", "glide"], "--layout generic or --layout per_generator"),
    *((paths, "no layout with both real and generated .*missing class folder.*community_forensics: GENERATOR/{real,fake}")
      for paths in (["train/ai", "val/ai"], ["a/b", "c"], [], ["progan/1_fake"]))])
def test_ambiguous_or_unknown_trees_are_refused(paths, words):
    with pytest.raises(UserError, match=words):
        guess(folders(paths), "root")


def test_stray_folders_are_ignored():
    paths = folders(["ADM/train/ai", "ADM/train/nature", "ADM/val/ai", "ADM/val/nature"], 100) | folders(["docs", ""], 3)
    assert guess(paths, "root")[0].name == "genimage"


def test_unusual_folder_names():
    assert place(LAYOUTS["binary"], "my gan v1.2\nbeta/1_fake", "root").generator == "my gan v1.2\nbeta"
    assert place(LAYOUTS["generic"], "real/a\nb", "root").label == 0


@pytest.mark.parametrize("spelling, name, kind", [
    ("stable_diffusion_v_1_4", "sd14", "latent diffusion"), ("Stable-Diffusion-1-5", "sd15", "latent diffusion"),
    ("StyleGAN2", "stylegan2", "gan"), ("ProGAN", "progan", "gan"), ("guided", "adm", "pixel diffusion"),
    ("DALLE3", "dalle3", "undisclosed"), ("dalle", "dalle", "autoregressive"), ("Deepfakes", "deepfakes", "face manipulation"),
    ("Something", "something", "unknown"), ("real", "real", "real")])
def test_names_and_families(spelling, name, kind):
    assert canonical(spelling) == name and family(name) == kind
