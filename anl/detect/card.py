"""The card of a detector in use: what it was trained on, its rule, thresholds and probability, its measured errors, its limits.

Rule, thresholds and probability come from validation photographs, the errors from test photographs; a photograph's patches
stand for the crops of a picture. People's pictures have been through JPEG and resizing, so validation images are also
judged after each harmless processing, and the reals as the files that the photographs came in. The threshold holds its
false-positive rate in every one of these conditions. The probability holds for a collection of what people have: one half
photographs as their files are, the other half generated, in every condition there is of those.

What only the making needs is imported there: scoring a first picture need not wait for statistics and tables.
"""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np

from anl.detect.crops import RULES, aggregate, tile
from anl.errors import UserError, reason
from anl.files import identity, read_json, sha256_of, write_json
from anl.io import atomic_folder

CARD, WEIGHTS = "card.json", "model.safetensors"
VERSION = 2
REAL = "real"  # the generator's name of photographs, as in the benchmark
GENERATED, REAL_WORD, UNDECIDED = "generated", "real", "undecided"
FILES = "files"  # the condition of a photograph as its file is: all of it, in its own size and format
# what a card must say for `--explain` and the book: a type, a list of it, or a part with its own; SHARE lies in [0, 1]
SHARE = "share"
STATED = {"licence": str, "limits": [str],
          "chosen_on": {"n_real": int, "n_fake": int, "target_fpr": SHARE, "target_miss": SHARE, "threshold_by_condition": dict},
          "trained_on": {"profile": str, "generator": str, "unseen": [str], "data": str},
          "measured": [{"of": str, "condition": str, "seen": bool, "n": int,
                        **{f"called_{word}": SHARE for word in (GENERATED, UNDECIDED, REAL_WORD)}}]}
LIMITS = (
    "A demonstration, trained for minutes on some hundred photographs: it knows none of the large generators.",
    "It was trained on downsampled photographs; pictures straight from a camera, screenshots and drawings are new to it.",
    "JPEG, resizing and blurring wipe out much of what it reads; it then has little to say, as the shares above show.",
    "The probability holds for a collection that is half generated, by what it was trained on, untouched or processed.",
    "A verdict is a hint, and no proof of anything about a picture or a person.")


def make(run, params, folder, licence, replace=False):
    """Write the folder of a detector in use: the run's weights and its card. Returns the card, a dict.

    run: folder of an anl.runs run. licence: one sentence on the weights. replace: whether a detector that this function
    wrote into `folder` earlier is replaced; nothing else is ever deleted. Raises UserError if the run or the benchmark is
    missing, or the folder is taken.
    """
    _check_free(Path(folder), replace)
    import pandas as pd
    from sklearn.metrics import average_precision_score

    from anl import detector as detectors
    from anl.detect import platt

    run, folder = Path(run), Path(folder)
    described, detector = read_json(run / "run.json"), detectors.load(run / WEIGHTS)
    val, test = (_scored(detector, params, split) for split in ("val", "test"))
    paired = val[val["condition"] != FILES]
    choice = pd.DataFrame([{"rule": rule, "AP": average_precision_score(*_photographs(paired, rule))} for rule in RULES])
    rule = str(choice.loc[choice["AP"].idxmax(), "rule"])  # the first of equals
    target = params.evaluation.target_fpr
    real, fake = ({condition: _photographs(part, rule)[1] for condition, part in val[val["label"] == label].groupby(
        "condition", sort=False)} for label in (0, 1))
    highest = {condition: float(np.quantile(logit, 1 - target, method="higher")) for condition, logit in real.items()}
    threshold = max(highest.values())
    midpoint, temperature = platt.fit([real[FILES]], list(fake.values()), len(real[FILES]))
    label, logit = _photographs(paired[paired["condition"] == "raw"], rule)
    lower = min(threshold, float(np.quantile(logit[label == 1], target, method="lower")))
    untouched = _photographs(test[test["condition"] == FILES], rule)[1] > highest["raw"]
    card = {"version": VERSION, "weights_sha256": sha256_of(run / WEIGHTS), "size": params.benchmark.size, "rule": rule,
            "midpoint": midpoint, "temperature": temperature, "threshold": threshold, "lower": lower,
            "chosen_on": {"split": "validation", "n_real": int((label == 0).sum()), "n_fake": int((label == 1).sum()),
                          "target_fpr": target, "target_miss": target, "rules": choice.to_dict("records"),
                          "threshold_by_condition": highest,
                          "files_above_untouched_threshold": float(untouched.mean())},
            "trained_on": {"profile": params.profile, "spec": described["spec"], "identity": described["identity"],
                           "generator": params.benchmark.seen, "unseen": [name for name in params.families
                                                                          if name != params.benchmark.seen],
                           "data": params.data.card, "versions": described["versions"]},
            "measured": _measured(test, rule, threshold, lower, params.benchmark.seen), "limits": list(LIMITS),
            "licence": licence}
    _check_free(folder, replace)  # again: minutes have passed
    with atomic_folder(folder, replace=replace) as temporary:
        shutil.copyfile(run / WEIGHTS, temporary / WEIGHTS)
        write_json(temporary / CARD, card)
    return card


def _check_free(folder, replace):
    """Raise UserError unless `folder` is new or empty, or, with `replace`, a detector's folder that `make` wrote."""
    if folder.is_symlink():
        raise UserError(f"{folder} is a symbolic link; give the folder itself, or another one, with --out")
    if folder.is_file():
        raise UserError(f"{folder} is a file; give another folder with --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in (CARD, WEIGHTS) or not path.is_file())
    try:
        ours = not foreign and read(folder).weights_sha256 == sha256_of(folder / WEIGHTS)
    except (UserError, OSError):
        ours = False
    if not ours:
        shown = foreign[0] if foreign else "a card or weights that `anl card` did not write"
        raise UserError(f"{folder} exists and holds {shown}; nothing was deleted: give another folder with --out, or remove this "
                        "one yourself")
    if not replace:
        raise UserError(f"{folder} already holds a detector; give another folder with --out, or replace it with --replace")


def _scored(detector, params, split):
    """DataFrame generator, label, photo, condition, logit: a row a patch of the split, in every condition, and a row a crop
    of its photographs' files. Validation holds the seen generator only."""
    import pandas as pd

    from anl import predict
    from anl.benchmark import read_images, read_manifest, use_rows
    from anl.data import views
    from anl.data.decode import decode
    from anl.data.patches import split_photos
    from anl.data.photos import read_card

    rows = use_rows(read_manifest(params.benchmark.folder), params)
    rows = rows[(rows["split"] == split) & ((split == "test") | rows["generator"].isin([REAL, params.benchmark.seen]))]
    pixels, tables = read_images(params.benchmark.folder, rows), []
    for condition in dict.fromkeys(["raw", *params.evaluation.controls]):
        logit = predict.score(detector, np.stack([views.apply(condition, image) for image in pixels]))
        tables.append(rows[["generator", "label", "photo"]].assign(condition=condition, logit=logit))
    photos = read_card(params.data.card)
    splits = split_photos(photos, dataclasses.asdict(params.data.split), params.seed)
    for photo in photos:
        if splits[photo.id] == split:
            crops, _ = tile(decode(Path(params.data.folder) / photo.file), params.benchmark.size)
            tables.append(pd.DataFrame({"generator": REAL, "label": 0, "photo": photo.id, "condition": FILES,
                                        "logit": predict.score(detector, crops)}))
    return pd.concat(tables, ignore_index=True)


def _photographs(table, rule):
    """(label, logit) with one row a photograph, class and condition."""
    grouped = table.groupby(["label", "condition", "photo"])["logit"].agg(lambda logit: aggregate(logit, rule)).reset_index()
    return grouped["label"].to_numpy(), grouped["logit"].to_numpy()


def _measured(test, rule, threshold, lower, seen):
    """A row per generator and condition: AP against the reals in that condition, and the shares of the three verdicts."""
    import pandas as pd
    from sklearn.metrics import average_precision_score

    rows = []
    for (generator, condition), part in test.groupby(["generator", "condition"], sort=True):
        label, logit = _photographs(part, rule)
        verdicts = pd.Series([verdict(value, threshold, lower) for value in logit])
        ap = None
        if generator != REAL:
            real = test[(test["generator"] == REAL) & (test["condition"] == condition)]
            ap = float(average_precision_score(*_photographs(pd.concat([real, part]), rule)))
        rows.append({"of": generator, "condition": condition, "seen": generator == seen, "n": len(label), "AP": ap,
                     **{f"called_{word}": float((verdicts == word).mean()) for word in (GENERATED, UNDECIDED, REAL_WORD)}})
    return rows


def verdict(logit, threshold, lower):
    """`generated` above the threshold, `real` below `lower`, `undecided` between."""
    return GENERATED if logit > threshold else REAL_WORD if logit < lower else UNDECIDED


@dataclasses.dataclass(frozen=True)
class Card:
    """What scoring needs of a card. size: pixels on a side of a crop. midpoint, threshold, lower: logits of a whole picture, the
    first that of a probability of one half. temperature: what logits beyond it are divided by."""

    size: int
    rule: str
    midpoint: float
    temperature: float
    threshold: float
    lower: float
    weights_sha256: str
    whole: dict = dataclasses.field(repr=False)

    @property
    def identity(self):
        """A short hash of the whole card, and so of the weights it speaks of."""
        return identity(self.whole)

    def probability(self, logit):
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, (logit - self.midpoint) / self.temperature))))

    def verdict(self, logit):
        return verdict(logit, self.threshold, self.lower)


def read(folder):
    """The Card in a folder. Raises UserError if it is missing, damaged or speaks of values that cannot be."""
    path = Path(folder) / CARD
    mend = "get the folder again, or make it with `anl card RUN_FOLDER`"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a detector in use needs its card; {mend}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(f"{path} cannot be read ({reason(problem)}); {mend}") from None
    try:
        _check(value, STATED)
        numbers = {key: float(value[key]) for key in ("midpoint", "temperature", "threshold", "lower")}
        card = Card(size=value["size"], rule=value["rule"], weights_sha256=value["weights_sha256"], whole=value, **numbers)
        sound = (value["version"] == VERSION and type(card.size) is int and 16 <= card.size <= 1024
                 and card.size % 16 == 0 and card.rule in RULES and all(map(math.isfinite, numbers.values()))
                 and card.temperature > 0 and card.lower <= card.threshold and isinstance(card.weights_sha256, str))
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise UserError(f"{path} lacks or misstates {reason(problem)}; {mend}") from None
    if not sound:
        raise UserError(f"{path} holds a version, size, rule or number that cannot be; {mend}")
    return card


def _check(value, shape, place="the card"):
    """Raise KeyError or TypeError, naming the place, unless `value` is stated as `shape` (see STATED) says."""
    if shape == SHARE:
        sound = type(value) in (int, float) and 0 <= value <= 1
    else:
        sound = type(value) is (shape if isinstance(shape, type) else type(shape))
    if not sound:
        raise TypeError(place)
    if isinstance(shape, dict):
        for key, inner in shape.items():
            _check(value[key], inner, key)
    elif isinstance(shape, list):
        for item in value:
            _check(item, shape[0], place)
