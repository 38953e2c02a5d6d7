"""Folder trees of published data sets: what a folder's place in its tree says of the images in it.

A layout is a row of LAYOUTS: a pattern for the folders that hold images, a table of what its words mean, and the layouts
of which it is a special case. `guess` says which one fits a tree and why; adding a data set is adding a row.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from anl.data.generator_names import canonical, family
from anl.data.manifest import REAL
from anl.errors import UserError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}
SPLIT = rf"(?P<split>{'|'.join(SPLITS)})"
NO_SPLIT = rf"(?!(?:{'|'.join(SPLITS)})(?:/|$))"
LABEL = r"(?:(?P<real>0_real)|1_fake)"
WORDS = r"(?:(?P<real>reals?|nature|natural|authentic)|fakes?|ai|generated|synthetic)"
BELOW = r"(?:/.*)?"  # whatever lies further down belongs to the folder
# the 20 LSUN classes on which CNNDetection trained ProGAN: folders named so hold ProGAN's images
PROGAN_CLASSES = "airplane|bicycle|bird|boat|bottle|bus|car|cat|chair|cow|diningtable|dog|horse|motorbike|person|" \
                 "pottedplant|sheep|sofa|train|tvmonitor"
UNIVFD_REALS = {"guided": "imagenet", "adm": "imagenet"}  # the other generators are compared with LAION
LEAST_SHARE = 0.5  # of the files that a layout has to explain to be taken
RIVAL_SHARE = 0.1  # of the files that another layout may explain at most


class Place(NamedTuple):
    """What a folder says of its images. pair: the place that should hold both classes."""

    label: int
    generator: str
    family: str
    split: str
    source_real: str
    pair: str


class Aside(NamedTuple):
    """A folder that the layout knows and does not index, with the reason."""

    reason: str


@dataclass(frozen=True)
class Layout:
    """tree: shown to people. pattern: of a folder's path, with groups split, generator, real, set. special_of: the
    layouts that fit as well and say less. needs: at least one of these is among the paths (a pattern), or it is another.
    side: 32 where images must have that side. reals: the one set of reals that all generators share.
    val_is_test: the published `val` is the test set. default_split: where no folder names one. aside: {pattern: reason}.
    paired: every generator has reals of its own."""

    name: str
    tree: str
    pattern: str
    special_of: tuple = ()
    needs: str = ""
    case: bool = False
    side: int = 0
    reals: str = ""
    fake: str = "fake"
    val_is_test: bool = False
    default_split: str = "test"
    aside: tuple = ()
    paired: bool = True


LAYOUTS = {layout.name: layout for layout in (
    Layout("binary", "[SPLIT/]GENERATOR[/CLASS]/{0_real,1_fake}",
           rf"(?:{SPLIT}(?:/|$))?(?:(?P<generator>[^/]+)/)?(?:[^/]+/)?{LABEL}{BELOW}"),
    Layout("wildrf", "{train,val}/{0_real,1_fake} and test/{reddit,twitter,facebook}/{0_real,1_fake}",
           rf"{SPLIT}/(?:(?P<generator>reddit|twitter|facebook)/)?{LABEL}{BELOW}", ("binary",),
           needs=r"test/(reddit|twitter|facebook)/", fake="wild"),
    Layout("aigibench", "train/{car,cat,chair,horse,sdv1.4}/{0_real,1_fake} and test/GENERATOR/{0_real,1_fake}",
           rf"{SPLIT}/(?P<generator>[^/]+)/{LABEL}{BELOW}", ("binary",), needs=r"train/sdv1\.4/"),
    Layout("genimage", "[GENERATOR/][imagenet_ai_...]/{train,val}/{ai,nature}; val is the published test set",
           rf"(?:(?P<generator>[^/]+)/)?(?:(?P<set>[^/]+)/)?{SPLIT}/(?:(?P<real>nature)|ai){BELOW}", ("generic",), val_is_test=True),
    Layout("diffusionforensics", "[images/]{train,val,test}/{lsun_bedroom,imagenet,celebahq}/{real,GENERATOR}",
           rf"(?:images/)?{SPLIT}/(?P<set>lsun_bedroom|imagenet|celebahq)/(?:(?P<real>real)|(?P<generator>[^/]+)){BELOW}",
           paired=False, aside=((r"(?:recons|dire)(?:/.*)?", "made from the images, not images of the set"),)),
    Layout("univfd", "[diffusion_datasets/]{imagenet,laion} (real) and guided, ldm_*, glide_*, dalle (generated)",
           r"(?:diffusion_datasets/)?(?:(?P<real>imagenet|laion)(?:/0_real)?|"
           r"(?P<generator>guided|adm|ldm_[^/]+|glide_[^/]+|dalle)(?:/1_fake)?)(?:/(?!0_real|1_fake).*)?",
           ("binary", "per_generator"), needs=r"(?:^|/)(guided|ldm_|glide_|dalle)", paired=False),
    Layout("drct", "[DRCT-2M/]GENERATOR/{train2017,val2017} and MSCOCO/{train2017,val2017} (real); val2017 is the test set",
           rf"(?:DRCT-2M/|images/)?(?:(?P<real>(?:ms)?coco[^/]*|real)|(?P<generator>[^/]+))/(?P<split>train|val)2017{BELOW}",
           ("per_generator",), val_is_test=True, reals="mscoco", paired=False),
    Layout("synthbuster", "{dalle2,dalle3,firefly,...}/*.png beside a folder of RAISE photographs",
           r"(?:synthbuster/)?(?:(?P<real>(?:real_)?raise[^/]*|real)|(?P<generator>dalle2|dalle3|firefly|glide|midjourney-v5|"
           rf"stable-diffusion-[^/]+|flux[^/]*)){BELOW}", ("per_generator",), needs=r"(?:^|/)(dalle3|firefly|midjourney-v5)",
           reals="raise", paired=False),
    Layout("cifake", "{train,test}/{REAL,FAKE}, images of 32 x 32 pixels",
           r"(?P<split>train|test)/(?:(?P<real>REAL)|FAKE)", ("generic", "per_generator"), case=True, side=32,
           reals="cifar10", fake="sd14", paired=False),
    Layout("community_forensics", "GENERATOR/{real,fake}",
           rf"{NO_SPLIT}(?P<generator>[^/]+)/(?:(?P<real>real)|fake){BELOW}", ("per_generator",), paired=False),
    Layout("deepfakebench", "[FaceForensics++/]{original_sequences,manipulated_sequences}/NAME/COMPRESSION/frames/VIDEO, "
           "Celeb-DF/{Celeb-real,YouTube-real,Celeb-synthesis}/frames/VIDEO",
           r"(?:[^/]+/)?(?:(?:(?P<real>original_sequences)|manipulated_sequences)/(?P<generator>[^/]+)/(?:raw|c23|c40)|"
           rf"(?P<set>Celeb-real|YouTube-real|Celeb-synthesis))/frames{BELOW}", default_split="unsplit", paired=False,
           aside=((r".*/(?:videos|masks|landmarks)(?:/.*)?", "no frames: videos, masks or landmarks"),)),
    Layout("generic", "[SPLIT/]{real,fake} (or nature, authentic; ai, generated, synthetic)",
           rf"(?:{SPLIT}/)?{WORDS}{BELOW}", ("per_generator",)),
    Layout("per_generator", "[SPLIT/]{real,GENERATOR,GENERATOR,...}",
           rf"(?:{SPLIT}/)?(?:(?P<real>real)|{NO_SPLIT}(?P<generator>(?![01]_|\.)[^/]+)){BELOW}", paired=False),
)}


def place(layout, folder, root_name):
    """What `layout` says of a folder: Place, Aside, or None where it has no such folder.

    folder: the path from the root, parts joined by "/", "" for the root itself. root_name: the root's own name, which
    stands for the generator where the tree begins below it.
    """
    flags = re.DOTALL | (0 if layout.case else re.IGNORECASE)
    for pattern, reason in layout.aside:
        if re.fullmatch(pattern, folder, flags):
            return Aside(reason)
    found = re.fullmatch(layout.pattern, folder, flags)
    if not found:
        return None
    word = {"split": None, "generator": None, "set": None, "real": None} | found.groupdict()
    split = SPLITS[word["split"].lower()] if word["split"] else layout.default_split
    split = "test" if layout.val_is_test and split == "val" else split
    label, generator, source = int(word["real"] is None), word["generator"], layout.reals
    name = _generator(layout, generator, word["set"], root_name, label)
    if layout.name == "deepfakebench":
        if word["set"]:
            label, name = int(not word["set"].lower().endswith("-real")), word["set"].lower()
        source = name if not label else ""
    elif layout.name == "diffusionforensics":
        source = word["set"].lower()
    elif layout.name == "univfd":
        source = word["real"].lower() if word["real"] else UNIVFD_REALS.get(canonical(generator), "laion")
    elif layout.name == "community_forensics":
        source = name if not label else ""
    elif not source:
        source = name if layout.paired else REAL
    maker = name if label else REAL
    return Place(label, maker, family(maker), split, source, f"{split}/{name}" if layout.paired else split)


def _generator(layout, generator, inner, root_name, label):
    """The generator that a folder belongs to, its reals included."""
    if layout.name == "genimage":
        for word in (generator, inner, root_name):
            if word and (known := re.fullmatch(r"imagenet_(?:.*_)?([^_]+)", word, re.IGNORECASE)):
                return canonical(known[1])
        return canonical(generator or root_name)
    if layout.name in ("binary", "aigibench") and generator and re.fullmatch(PROGAN_CLASSES, generator, re.IGNORECASE):
        return "progan"
    if generator:
        return canonical(generator)
    if layout.name == "binary":
        return canonical(root_name)
    return layout.fake


def check_name(name):
    """The layout of that name. Raises UserError."""
    if name not in LAYOUTS:
        raise UserError(f"there is no layout '{name}'; choose one of {', '.join(LAYOUTS)}, or parquet")
    return LAYOUTS[name]


def fit(layout, folders, root_name):
    """How far a layout explains a tree: (share of files, classes found, folders of its own).

    folders: {path: Folder}, as `anl.data.walk.survey` finds them.
    """
    total = sum(folder.files for folder in folders.values())
    share, labels, own = 0, set(), []
    for path, folder in folders.items():
        where = place(layout, path, root_name)
        if where is not None:
            share += folder.files
        if isinstance(where, Place):
            labels.add(where.label)
            own.append(path)
    return share / max(total, 1), labels, own


def guess(folders, root_name, side_of=None):
    """The layout that fits a tree, and why: (Layout, sentence).

    folders: {path: Folder}. side_of(path): width and height of an image in that folder, to tell data sets apart whose
    folders have the same names. Raises UserError where none fits or two do, naming what was seen and how to choose.
    """
    fits = {}
    for layout in LAYOUTS.values():
        share, labels, own = fit(layout, folders, root_name)
        if share < RIVAL_SHARE or labels != {0, 1}:
            continue
        if layout.needs and not any(re.search(layout.needs, path, re.IGNORECASE) for path in own):
            continue
        if layout.side and side_of is not None and side_of(own[0]) != (layout.side, layout.side):
            continue
        fits[layout.name] = share
    fits = {name: share for name, share in fits.items()
            if not any(name in LAYOUTS[other].special_of and fits[other] >= share for other in fits)}
    seen = ", ".join(f"{path or '.'}/" for path in sorted(folders)[:4])
    if len(fits) > 1:
        shown = "; ".join(f"{name} ({LAYOUTS[name].tree}) explains {share:.0%} of the files" for name, share in fits.items())
        raise UserError(f"{len(fits)} layouts fit this tree ({seen} ...): {shown}. Choose with --layout {' or --layout '.join(fits)}, "
                        "or index the data sets one by one, each from its own folder")
    best = next(iter(fits), None)
    if best is None or fits[best] < LEAST_SHARE:
        shown = "; ".join(f"{layout.name}: {layout.tree}" for layout in LAYOUTS.values())
        near = f"; {best} explains only {fits[best]:.0%} of the files" if best else ""
        raise UserError(f"no layout with both real and generated images fits this tree ({seen or 'no files'} ...){near}. Is "
                        f"a class folder missing, or is the root another folder? `--layout NAME` chooses one of: {shown}")
    layout = LAYOUTS[best]
    return layout, f"{layout.tree} explains {fits[best]:.0%} of the files and gives both classes"
