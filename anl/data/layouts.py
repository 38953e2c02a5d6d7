"""Folder layouts of published data sets: how a folder's path determines label, generator and split of its images.

A layout is an entry of LAYOUTS: a pattern for the folders that hold images, and the meaning of the pattern's groups.
`guess` finds the layout of a tree. To support another data set, add an entry.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from anl.data import REAL
from anl.data.generator_names import canonical, family
from anl.io import UserError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}
SPLIT = rf"(?P<split>{'|'.join(SPLITS)})"
NO_SPLIT = rf"(?!(?:{'|'.join(SPLITS)})(?:/|$))"
LABEL = r"(?:(?P<real>0_real)|1_fake)"
WORDS = r"(?:(?P<real>reals?|nature|natural|authentic)|fakes?|ai|generated|synthetic)"
BELOW = r"(?:/.*)?"  # deeper folders belong to the same class
# the 20 LSUN classes that CNNDetection's ProGAN was trained on: folders with these names hold ProGAN images
PROGAN_CLASSES = "airplane|bicycle|bird|boat|bottle|bus|car|cat|chair|cow|diningtable|dog|horse|motorbike|person|" \
                 "pottedplant|sheep|sofa|train|tvmonitor"
UNIVFD_REALS = {"guided": "imagenet", "adm": "imagenet"}  # the other generators are compared with LAION
MIN_SHARE = 0.5  # share of the files that a layout must match to be chosen
RIVAL_SHARE = 0.1  # share of the files from which a second matching layout makes the choice ambiguous


class Place(NamedTuple):
    """Properties of the images in a folder. Folders with the same `pair` should together hold both classes."""

    label: int
    generator: str
    family: str
    split: str
    source_real: str
    pair: str


@dataclass(frozen=True)
class Layout:
    """A folder layout: its name, a readable description (`tree`), and how to interpret the folders."""

    name: str
    tree: str
    pattern: str  # matches a folder's path; groups split, generator, real and set
    special_of: tuple = ()  # more general layouts that this one takes precedence over
    needs: str = ""  # pattern that at least one path must contain
    case: bool = False  # whether `pattern` is case-sensitive
    side: int = 0  # pixels that images must have on a side; 0 is any
    reals: str = ""  # name of the set of reals, if all generators share one
    fake: str = "fake"  # generator of generated images whose path names none
    val_is_test: bool = False  # whether the published `val` is the test set
    default_split: str = "test"  # split if the path names none
    excluded: tuple = ()  # (pattern, reason) of folders that are not indexed
    paired: bool = True  # whether every generator has separate reals


LAYOUTS = {layout.name: layout for layout in (
    Layout("binary", "[SPLIT/]GENERATOR[/CLASS]/{0_real,1_fake}",
           rf"(?:{SPLIT}(?:/|$))?(?:(?P<generator>[^/]+)/)?(?:[^/]+/)?{LABEL}{BELOW}"),
    Layout("wildrf", "{train,val}/{0_real,1_fake} and test/{reddit,twitter,facebook}/{0_real,1_fake}",
           rf"{SPLIT}/(?:(?P<generator>reddit|twitter|facebook)/)?{LABEL}{BELOW}", ("binary",),
           needs=r"test/(reddit|twitter|facebook)/", fake="wild"),
    Layout("aigibench", "train/{car,cat,chair,horse,sdv1.4}/{0_real,1_fake} and test/GENERATOR/{0_real,1_fake}",
           rf"{SPLIT}/(?P<generator>[^/]+)/{LABEL}{BELOW}", ("binary",), needs=r"train/sdv1\.4/"),
    Layout("genimage", "[GENERATOR/][imagenet_ai_...]/{train,val}/{ai,nature}; val is the published test set",
           rf"(?:(?P<generator>[^/]+)/)?(?:(?P<set>[^/]+)/)?{SPLIT}/(?:(?P<real>nature)|ai){BELOW}", ("generic",),
           val_is_test=True),
    Layout("diffusionforensics", "[images/]{train,val,test}/{lsun_bedroom,imagenet,celebahq}/{real,GENERATOR}",
           rf"(?:images/)?{SPLIT}/(?P<set>lsun_bedroom|imagenet|celebahq)/(?:(?P<real>real)|(?P<generator>[^/]+)){BELOW}",
           paired=False, excluded=((r"(?:recons|dire)(?:/.*)?", "computed from the images, not images of the set"),)),
    Layout("univfd", "[diffusion_datasets/]{imagenet,laion} (real) and guided, ldm_*, glide_*, dalle (generated)",
           r"(?:diffusion_datasets/)?(?:(?P<real>imagenet|laion)(?:/0_real)?|"
           r"(?P<generator>guided|adm|ldm_[^/]+|glide_[^/]+|dalle)(?:/1_fake)?)(?:/(?!0_real|1_fake).*)?",
           ("binary", "per_generator"), needs=r"(?:^|/)(guided|ldm_|glide_|dalle)", paired=False),
    Layout("drct", "[DRCT-2M/]GENERATOR/{train2017,val2017} and MSCOCO/{train2017,val2017} (real); val2017 is the test set",
           rf"(?:DRCT-2M/|images/)?(?:(?P<real>(?:ms)?coco[^/]*|real)|(?P<generator>[^/]+))/(?P<split>train|val)2017{BELOW}",
           ("per_generator",), val_is_test=True, reals="mscoco", paired=False),
    Layout("synthbuster", "{dalle2,dalle3,firefly,...}/*.png and a folder of RAISE photographs",
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
           excluded=((r".*/(?:videos|masks|landmarks)(?:/.*)?", "videos, masks or landmarks, not frames"),)),
    Layout("generic", "[SPLIT/]{real,fake} (or nature, authentic; ai, generated, synthetic)",
           rf"(?:{SPLIT}/)?{WORDS}{BELOW}", ("per_generator",)),
    Layout("per_generator", "[SPLIT/]{real,GENERATOR,GENERATOR,...}",
           rf"(?:{SPLIT}/)?(?:(?P<real>real)|{NO_SPLIT}(?P<generator>(?![01]_|\.)[^/]+)){BELOW}", paired=False),
    Layout("photographs", "any folders, all images real", r"(?P<real>).*", reals=REAL, default_split="unsplit", paired=False),
)}


def place(layout, folder, root_name):
    """Properties of the images in a folder, according to a layout.

    Parameters
    ----------
    layout : Layout
    folder : str
        Path from the root; "" for the root itself.
    root_name : str
        Name of the root folder. Some layouts use it as the generator if the path names none.

    Returns
    -------
    Place, str or None
        A str is the reason why the layout excludes this folder. None: the layout does not match the folder.
    """
    flags = re.DOTALL | (0 if layout.case else re.IGNORECASE)
    for pattern, why in layout.excluded:
        if re.fullmatch(pattern, folder, flags):
            return why
    found = re.fullmatch(layout.pattern, folder, flags)
    if not found:
        return None
    word = dict.fromkeys(("split", "generator", "set", "real")) | found.groupdict()
    split = SPLITS[word["split"].lower()] if word["split"] else layout.default_split
    split = "test" if layout.val_is_test and split == "val" else split
    label, generator, source = int(word["real"] is None), word["generator"], layout.reals
    name = _generator(layout, generator, word["set"], root_name)
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
    generator = name if label else REAL
    return Place(label, generator, family(generator), split, source, f"{split}/{name}" if layout.paired else split)


def _generator(layout, generator, inner, root_name):
    """Name of the generator that a folder belongs to; for reals, of the generator they are compared with."""
    if layout.name == "genimage":
        for word in (generator, inner, root_name):
            if word and (known := re.fullmatch(r"imagenet_(?:.*_)?([^_]+)", word, re.IGNORECASE)):
                return canonical(known[1])
        return canonical(generator or root_name)
    if layout.name in ("binary", "aigibench") and generator and re.fullmatch(PROGAN_CLASSES, generator, re.IGNORECASE):
        return "progan"
    if generator:
        return canonical(generator)
    return canonical(root_name) if layout.name == "binary" else layout.fake


def guess(folders, root_name, side_of=None):
    """Find the layout that fits a folder tree.

    Parameters
    ----------
    folders : mapping of str to Folder
        As returned by `anl.data.walk.survey`.
    root_name : str
        Name of the root folder.
    side_of : callable, optional
        Function from a folder's path to (width, height) of one of its images. It distinguishes data sets whose folders
        have the same names.

    Returns
    -------
    layout : Layout
    reason : str
        Why it was chosen, for the user.

    Raises
    ------
    UserError
        If no layout fits, or several do.
    """
    shares, total = {}, max(sum(folder.files for folder in folders.values()), 1)
    for layout in LAYOUTS.values():
        places = {path: place(layout, path, root_name) for path in folders}
        images = [path for path, where in places.items() if isinstance(where, Place)]
        share = sum(folders[path].files for path, where in places.items() if where is not None) / total
        if share < RIVAL_SHARE or {places[path].label for path in images} != {0, 1}:
            continue
        if layout.needs and not any(re.search(layout.needs, path, re.IGNORECASE) for path in images):
            continue
        if layout.side and side_of is not None and side_of(images[0]) != (layout.side, layout.side):
            continue
        shares[layout.name] = share
    shares = {name: share for name, share in shares.items()
              if not any(name in LAYOUTS[other].special_of and shares[other] >= share for other in shares)}
    seen = ", ".join(f"{path or '.'}/" for path in sorted(folders)[:4])
    if len(shares) > 1:
        shown = "; ".join(f"{name} ({LAYOUTS[name].tree}) explains {share:.0%} of the files" for name, share in shares.items())
        raise UserError(f"{len(shares)} layouts fit this tree ({seen} ...): {shown}; choose with --layout "
                        f"{' or --layout '.join(shares)}, or index each data set from its own folder")
    best = next(iter(shares), None)
    if best is None or shares[best] < MIN_SHARE:
        shown = "; ".join(f"{layout.name}: {layout.tree}" for layout in LAYOUTS.values())
        near = f"; {best} explains only {shares[best]:.0%} of the files" if best else ""
        raise UserError(f"no layout with both real and generated images fits this tree ({seen or 'no files'} ...){near}; "
                        f"check for a missing class folder or another root, or choose with --layout NAME: {shown}")
    layout = LAYOUTS[best]
    return layout, f"{layout.tree} explains {shares[best]:.0%} of the files and gives both classes"
