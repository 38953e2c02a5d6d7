"""One definition of each pixel operation: views, negative controls, perturbations and augmentation are built from these.

Every named operation takes and returns uint8 (H, W, 3) of the same size, so that a detector always sees 8-bit images.
Its name is a string: `jpeg_90`, `blur_0.5`, a fixed name such as `jpeg96`, or a chain such as `jpeg96+blur_1`.
"""

import functools
import hashlib
import io

import numpy as np
from PIL import Image, ImageFilter

from anl import seeds
from anl.config import AUGMENTATIONS
from anl.io import UserError

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
LOSSLESS_FORMATS = ("PNG", "BMP", "TIFF", "GIF", "PPM")
MATCHED_TOLERANCE = 0.01  # total variation distance below which two distributions of file formats count as equal


# ---- the operations ----------------------------------------------------------------------------------------------------
def encode(pixels, form="png", quality=None):
    """uint8 (H, W, 3) -> bytes; one encoder setting for both classes (JPEG with 4:2:0 chroma)."""
    options = {"png": {"compress_level": 9}, "jpeg": {"quality": quality, "subsampling": "4:2:0"},
               "webp": {"quality": quality, "method": 4}}[form]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=FORMATS[form], **options)
    return stream.getvalue()


def jpeg(pixels, quality):
    """Encode as JPEG at `quality` (1 to 100, rounded) and decode."""
    return np.asarray(Image.open(io.BytesIO(encode(pixels, "jpeg", round(quality)))))


def webp(pixels, quality):
    """Encode as lossy WebP at `quality` (0 to 100, rounded) and decode."""
    return np.asarray(Image.open(io.BytesIO(encode(pixels, "webp", round(quality)))).convert("RGB"))


def resize(pixels, factor):
    """Resize by `factor` with anti-aliased bicubic interpolation, and back to the original size."""
    height, width = pixels.shape[:2]
    inner = (max(1, round(width * factor)), max(1, round(height * factor)))
    if inner == (width, height):
        return pixels
    image = Image.fromarray(pixels).resize(inner, Image.Resampling.BICUBIC)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def rescale(pixels, factor):
    """Resize by `factor` with anti-aliased bicubic interpolation."""
    height, width = pixels.shape[:2]
    inner = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(inner, Image.Resampling.BICUBIC))


def scale(pixels, factor):
    """Resize by `factor`, then crop the centre or pad by mirroring to the original size."""
    height, width = pixels.shape[:2]
    scaled = rescale(pixels, factor)
    lack = [max(0, side - part) for side, part in zip((height, width), scaled.shape)]
    scaled = np.pad(scaled, (*((part // 2, part - part // 2) for part in lack), (0, 0)), mode="symmetric")
    top, left = ((part - side) // 2 for side, part in zip((height, width), scaled.shape))
    return np.ascontiguousarray(scaled[top:top + height, left:left + width])


def sharpen(pixels, amount):
    """Add `amount` times the difference from a Gaussian blur of one pixel (unsharp masking)."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.UnsharpMask(radius=1, percent=round(100 * amount), threshold=0)))


def blur(pixels, radius):
    """Gaussian blur with a standard deviation of `radius` pixels (Pillow's approximation by box filters)."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def crop(pixels, share):
    """Keep the central `share` (0.5 < share <= 1) of each side and pad to the original size by reflection.

    No pixel is interpolated, and the size stays a multiple of the detector's stride.
    """
    sides = pixels.shape[:2]
    kept = [round(side * share) for side in sides]
    first = [(side - part) // 2 for side, part in zip(sides, kept)]
    middle = pixels[first[0]:first[0] + kept[0], first[1]:first[1] + kept[1]]
    rim = [(start, side - part - start) for start, side, part in zip(first, sides, kept)]
    return np.pad(middle, [*rim, (0, 0)], mode="reflect")


def denoise(pixels, deviation=2.0):
    """Adaptive 3 x 3 Wiener filter that assumes noise of `deviation` grey levels: smooths flat regions, keeps edges."""
    from scipy.signal import wiener  # imported here: it takes over a second in every process that imports this module

    values = pixels.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        clean = np.stack([wiener(values[..., channel], 3, deviation**2) for channel in range(3)], axis=-1)
    return np.rint(np.where(np.isfinite(clean), clean, values)).clip(0, 255).astype(np.uint8)


def noise(pixels, deviation, rng):
    """Add white Gaussian noise of `deviation` grey levels."""
    return np.rint(pixels + deviation * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8)


OPERATIONS = {"jpeg": jpeg, "webp": webp, "resize": resize, "scale": scale, "blur": blur, "sharpen": sharpen, "crop": crop,
              "denoise": denoise}
FIXED = {"jpeg96": ("jpeg", 96.0), "resize75": ("resize", 0.75), "blur": ("blur", 0.5), "denoise": ("denoise", 2.0)}


# ---- by name -----------------------------------------------------------------------------------------------------------
def name_of(kind, strength):
    """The name of an operation, for example `jpeg_90` or `blur_0.5`."""
    return f"{kind}_{strength:g}"


def parse(name):
    """(kind, strength) of a single operation's name; ("raw", 0.0) for `raw`. UserError if name or strength is invalid."""
    if name == "raw":
        return "raw", 0.0
    if name in FIXED:
        return FIXED[name]
    kind, _, text = name.partition("_")
    try:
        strength = float(text)
    except ValueError:
        strength = float("nan")
    if kind not in (*OPERATIONS, "noise"):
        raise UserError(f"unknown processing '{name}'; choose one of raw, {', '.join(FIXED)}, or one of "
                        f"{', '.join([*OPERATIONS, 'noise'])} with a strength (`jpeg_90`)")
    if not 0 < strength < float("inf"):
        raise UserError(f"processing '{name}' needs a positive strength after the underscore, for example `jpeg_90`")
    return kind, strength


def apply(name, pixels, seed=None, image_id=None):
    """Apply a named operation, or a chain of them joined by `+`, to one image.

    Parameters
    ----------
    name : str
        `raw`, one of the FIXED names, or `kind_strength` with a kind of jpeg, webp (quality), resize, scale (factor), blur
        (pixels), sharpen (amount), crop (share of a side), denoise or noise (grey levels).
    pixels : ndarray
        uint8 (H, W, 3).
    seed, image_id : int, str
        Seed of `noise`, so that the noise of an image does not depend on the order of images.

    Returns
    -------
    ndarray
        uint8 (H, W, 3). `raw` returns `pixels` itself.

    Raises
    ------
    UserError
        If a name is unknown, or its strength is not positive.
    """
    for part in name.split("+"):
        kind, strength = parse(part)
        if kind == "noise":
            pixels = noise(pixels, strength, seeds.generator(seed, "perturbation", image_id))
        elif kind != "raw":
            pixels = OPERATIONS[kind](pixels, strength)
    return pixels


def apply_to_picture(name, pixels, key=""):
    """Process a whole picture as `apply` does, except that `scale` changes its size instead of padding it.

    key: a name of the picture, from which random numbers are derived.
    """
    for part in name.split("+"):
        kind, strength = parse(part)
        pixels = rescale(pixels, strength) if kind == "scale" else apply(part, pixels, 0, key)
    return pixels


def apply_all(names, pixels, seed=None, image_ids=None):
    """Apply one name, or one of N `names` each, to uint8 (N, H, W, 3). If all are `raw`, `pixels` itself is returned."""
    names = [names] * len(pixels) if isinstance(names, str) else list(names)
    if all(name == "raw" for name in names):
        return pixels
    ids = [None] * len(pixels) if image_ids is None else image_ids
    return np.stack([apply(name, image, seed, key) for name, image, key in zip(names, pixels, ids, strict=True)])


# ---- views of a benchmark ----------------------------------------------------------------------------------------------
def encodings(rows, view, seed):
    """Name the operation that each image of a benchmark gets in a view.

    The view `matched` compresses generated images like the real images that they are compared with:

    - Real images are unchanged.
    - The images of a generator are unchanged if their formats and JPEG qualities are distributed like those of the reals.
    - Any other generated image gets the encoding of the real image that it is paired with. If it has none, its encoding
      is drawn from the distribution of the reals. The draw depends on the seed, the image's pair (or `image_id`) and the
      reals, not on other generators.

    Parameters
    ----------
    rows : DataFrame
        Manifest rows with the columns label, generator and image_id; format, jpeg_quality, pair and source_real if known.
    view : str
        `raw`, `matched` or any name that `apply` takes.
    seed : int

    Returns
    -------
    list of str
        N names for `apply_all`.

    Raises
    ------
    UserError
        If reals have a format that `matched` cannot imitate.
    """
    return _matched(rows, rows["label"].to_numpy(), seed) if view == "matched" else [view] * len(rows)


def _matched(rows, label, seed):
    names = np.full(len(rows), "raw", object)
    form = rows["format"].astype(str).to_numpy() if "format" in rows else np.full(len(rows), "PNG", object)
    quality = (rows["jpeg_quality"].fillna(0).astype(int) if "jpeg_quality" in rows else rows["label"] * 0).to_numpy()
    encoding = np.array([_encoding(*pair) for pair in zip(form, quality)], object)
    source = _texts(rows, "source_real")
    pair, image, generator = _texts(rows, "pair"), _texts(rows, "image_id"), _texts(rows, "generator")
    real, generated = label == 0, label == 1
    partner = {key: encoding[index] for index, key in enumerate(pair) if real[index] and key}
    for maker, own in sorted(set(zip(generator[generated], source[generated]))):
        reals = real & (source == own) if (real & (source == own)).any() else real
        mine = np.flatnonzero(generated & (generator == maker) & (source == own))
        wanted = _distribution(encoding[reals])
        present = _distribution(encoding[mine])
        distance = sum(abs(wanted.get(key, 0) - present.get(key, 0)) for key in {*wanted, *present}) / 2
        if distance <= MATCHED_TOLERANCE:
            continue
        if odd := [key for key in wanted if key.startswith("?")]:
            raise UserError(f"view 'matched' cannot write {odd[0][1:]}, the format of some reals; remove the view from "
                            "evaluation.views, and set evaluation.headline to another one")
        options, steps = list(wanted), np.cumsum(list(wanted.values()))
        for index in mine:
            drawn = options[int(np.searchsorted(steps, _share(seed, pair[index] or image[index]) * steps[-1], side="right"))]
            names[index] = partner.get(pair[index], drawn)
    return names.tolist()


def _encoding(form, quality):
    """The operation that imitates a file's encoding, a name for `apply`; "?FORMAT" if there is none."""
    if form == "JPEG" and quality:
        return name_of("jpeg", quality)
    return "raw" if form in LOSSLESS_FORMATS else f"?{form}"


def _distribution(encoding):
    """Share of each value, a dict sorted by key."""
    values, counts = np.unique(encoding.astype(str), return_counts=True)
    return dict(zip(values.tolist(), (counts / max(counts.sum(), 1)).tolist()))


def _texts(rows, column):
    """A column as an object array of strings; empty strings where it is missing."""
    if column not in rows:
        return np.full(len(rows), "", object)
    return rows[column].astype(object).fillna("").astype(str).to_numpy(object)


def _share(seed, key):
    """A pseudo-random number in [0, 1) that depends only on the seed and the key."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:6], "big") / 2**48


# ---- augmentation of training pairs ------------------------------------------------------------------------------------
def augmentation_plan(pairs, training, seed, step):
    """Draw the augmentations of each pair of a training batch; both images of a pair get the same.

    Parameters
    ----------
    pairs : sequence of int
        The pairs of the whole batch, before it is divided among processes. A pair that occurs twice has one plan.
    training : TrainingConfig
        With probability `augment_probability`, a pair gets one of `augmentations`. After each, it gets another one with
        the same probability, up to `augment_most`.
    seed, step : int
        The plan is a pure function of pairs, settings, seed and step.

    Returns
    -------
    list of tuple or None
        For each pair its operations in order, (kind, strength) each, or None if it is unchanged.

    References
    ----------
    Wang et al. "CNN-generated images are surprisingly easy to spot... for now." CVPR 2020.
    """
    different, place = np.unique(np.asarray(pairs), return_inverse=True)
    rng, plans = seeds.generator(seed, "augment", step), [()] * len(different)
    for number in range(training.augment_most):
        for index, (chance, kind, strength) in enumerate(rng.random((len(different), 3))):
            if len(plans[index]) == number and chance < training.augment_probability:
                name = training.augmentations[int(kind * len(training.augmentations))]
                low, high = getattr(training, AUGMENTATIONS[name])
                plans[index] = (*plans[index], (name, float(low + strength * (high - low))))
    return [plans[index] or None for index in place.tolist()]


def apply_plan(plan, pixels):
    """Process uint8 (N, H, W, 3) by a plan with an entry of `augmentation_plan` for each image."""
    if not any(plan):
        return pixels
    return np.stack([functools.reduce(_augmented, entry or (), image) for entry, image in zip(plan, pixels, strict=True)])


def _augmented(pixels, operation):
    kind, strength = operation
    if kind == "noise":  # seeded by the strength, so that both images of a pair get the same noise
        return noise(pixels, strength, seeds.generator(0, "augment", strength))
    return OPERATIONS[kind](pixels, strength)
