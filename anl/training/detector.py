"""Train a detector on pairs of a real image and its regeneration, so that image content does not predict the label."""

import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from anl import seeds
from anl.data import images, processing
from anl.io import UserError
from anl.models.detector import anl_loss
from anl.training.device import sum_over_processes, synchronise_batch_norm
from anl.training.loop import fit

__all__ = ["TrainingData", "noise_mask", "pair_batch", "train_detector"]

VALIDATION_BATCH = 64
CURVE_POINTS = 40


@dataclass
class TrainingData:
    """The images that a detector is trained and validated on."""

    pixels: np.ndarray                      # uint8 (N, H, W, 3)
    label: np.ndarray                       # float32 (N,), 1 = generated
    image_ids: list                         # N names, for error messages
    real: np.ndarray                        # int (P,): row of the real image of each pair
    fake: np.ndarray                        # int (P, A): rows of its generated images; one of the A is drawn at each use
    target: torch.Tensor | None = None      # float16 (N, C, h, w) noise in standard deviations; None: no noise is learned
    val_pixels: np.ndarray | None = None    # uint8 (M, H, W, 3): of seen generators and real ones
    val_label: np.ndarray | None = None     # (M,)


def train_detector(detector, data, training, method, *, seed, accelerator, checkpoint=None, loss=anl_loss,
                   augment=(processing.augmentation_plan, processing.apply_plan), workers=0, name="detector"):
    """Train a detector in place.

    Parameters
    ----------
    detector : nn.Module
        (B, 3, H, W) -> `anl.models.detector.Output`.
    data : TrainingData
    training : anl.config.TrainingConfig
    method : anl.config.MethodConfig
        Its loss_weight, attention_weight, noise_on and consistent are used.
    seed : int
        Seed of all random numbers except the initial weights, which the caller draws.
    accelerator : accelerate.Accelerator
    checkpoint : anl.training.loop.Checkpoint or None
        The file is kept when training ends. Remove it once the result is written.
    loss : callable
        With the signature of `anl.models.detector.anl_loss`.
    augment : (callable, callable)
        `augmentation_plan(pairs, training, seed, step)` returns a sequence with one entry per pair, None for no
        augmentation. `apply_plan(plan, pixels)` applies N such entries to images (N, H, W, 3).
    workers : int
        Threads that read and augment the next batch, and compute its targets, during the current training step. With 0
        this is done between the steps. The result does not depend on it.
    name : str
        Shown in the progress bar and in error messages.

    Returns
    -------
    (nn.Module, list of dict)
        The detector in eval mode, and the curve: step, learning_rate, losses, and `val_auroc` where it was computed.

    Raises
    ------
    UserError
        If there are no or too few pairs, or a loss is not finite.
    """
    validated = data.val_label is not None and len(set(np.asarray(data.val_label).tolist())) == 2
    pairs_used, per_batch = _pairs_used(data, training.pairs, seed), training.batch_size // 2
    parts = training.accumulate * accelerator.num_processes
    if per_batch < parts:
        raise UserError(f"a batch of {per_batch} pairs cannot be divided into {parts} parts; raise training.batch_size, or "
                        "lower training.accumulate or the number of processes")
    augmentation_plan, apply_plan = augment
    detector = synchronise_batch_norm(detector, accelerator)
    detector.to(accelerator.device, memory_format=torch.channels_last).train()

    @functools.lru_cache(maxsize=2)
    def batch_at(step):
        """Rows of the real and the generated image, augmentation plan, flip and noise mask of each pair of a whole batch."""
        pairs = pairs_used[pair_batch(len(pairs_used), per_batch, seed, step)]
        plan = list(augmentation_plan(pairs, training, seed, step))
        flip = seeds.generator(seed, "flip", step).random(len(pairs)) < (0.5 if training.flip else 0)
        fake = data.fake[pairs, _alternatives(data.fake.shape[1], len(pairs), seed, step)]
        return data.real[pairs], fake, plan, flip, noise_mask(plan, method.noise_on, method.consistent)

    @torch.no_grad()
    def inputs_at(step, part):
        """Augmented uint8 images of a part of a batch, and their targets. Both images of a pair get the same augmentation."""
        real, fake, plan, *_ = batch_at(step)
        whole = np.concatenate([part.of(real), part.of(fake)])
        shares = np.array_split(whole, max(1, workers))
        plans = iter(part.of(plan) * 2)
        todo = [(list(itertools.islice(plans, len(rows))), rows) for rows in shares if len(rows)]
        done = [*run(lambda plan, rows: apply_plan(plan, data.pixels[rows]), *zip(*todo))]
        pixels = torch.from_numpy(np.ascontiguousarray(np.concatenate(done)))
        target = None if data.target is None else data.target[torch.from_numpy(whole)]
        if accelerator.device.type == "cuda":
            pixels, target = pixels.pin_memory(), None if target is None else target.pin_memory()
        return pixels, target

    def loss_at(step, part):
        real, fake, _, flip, mask = batch_at(step)
        rows = np.concatenate([part.of(real), part.of(fake)])
        pixels, target = inputs_of(step, part)
        x = images.to_tensor(pixels, accelerator.device)
        target = None if target is None else target.to(accelerator.device, non_blocking=True)
        flipped = torch.from_numpy(np.flatnonzero(np.tile(part.of(flip), 2))).to(accelerator.device)
        if len(flipped):  # the target of a flipped image is taken to be the flipped target
            x[flipped] = x[flipped].flip(-1)
            if target is not None:
                target[flipped] = target[flipped].flip(-1)
        label = torch.from_numpy(data.label[rows]).to(accelerator.device)
        included = torch.from_numpy(np.concatenate([part.of(half) for half in mask])).to(accelerator.device)
        return loss(forward(x), label, target, included, loss_weight=method.loss_weight,
                    attention_weight=method.attention_weight, batch=(2 * len(real), int(np.sum(mask))))

    def samples_at(step, part):
        real, fake, *_ = batch_at(step)
        return [data.image_ids[row] for row in np.concatenate([part.of(real), part.of(fake)])]

    def validate(point):
        due = point["step"] == training.steps or (training.validate_every and point["step"] % training.validate_every == 0)
        return {"val_auroc": _auroc(detector, data, accelerator)} if validated and due else {}

    forward = torch.compile(detector) if training.compile else detector
    every = max(1, training.steps // CURVE_POINTS)
    if training.validate_every:
        every = math.gcd(every, training.validate_every)
    # a new thread does not inherit the current GPU of its process
    on_device = functools.partial(torch.cuda.set_device, torch.cuda.current_device()) if accelerator.device.type == "cuda" else None
    with ThreadPoolExecutor(max(1, workers)) as threads, ThreadPoolExecutor(1, initializer=on_device) as coming:
        run = threads.map if workers else map
        inputs_of = _one_step_ahead(inputs_at, training.steps, coming) if workers else inputs_at
        curve = fit({"detector": detector}, loss_at, steps=training.steps, learning_rate=training.learning_rate,
                    weight_decay=training.weight_decay, warmup_steps=training.warmup_steps,
                    final_learning_rate=training.final_learning_rate, clip_norm=training.clip_norm, ema=training.ema,
                    accumulate=training.accumulate, accelerator=accelerator, seed=seed, checkpoint=checkpoint,
                    checkpoint_seconds=training.checkpoint_seconds, name=name, every=every, on_point=validate,
                    samples_at=samples_at)
    return detector.eval(), curve


def _one_step_ahead(make, steps, executor):
    """Wrap `make(step, part)` so that the result of the next step is computed in the executor during the current one."""
    coming = {}

    def made(step, part):
        found = coming.pop((step, part), None)
        if step + 1 < steps:
            coming[step + 1, part] = executor.submit(make, step + 1, part)
        return make(step, part) if found is None else found.result()

    return made


def pair_batch(pairs, size, seed, step):
    """Indices (size,) of the pairs of batch `step`: shuffled epochs, concatenated and cut into batches."""
    positions = np.arange(step * size, (step + 1) * size)
    epochs = positions // pairs
    return np.concatenate([_epoch(pairs, seed, epoch)[positions[epochs == epoch] % pairs] for epoch in np.unique(epochs).tolist()])


def noise_mask(plan, noise_on="both", consistent=False):
    """Images included in the noise loss.

    Parameters
    ----------
    plan : sequence
        One entry per pair, None if the pair is not augmented.
    noise_on : {"both", "real", "generated"}
        Class of the images to include.
    consistent : bool
        Whether to include augmented images. Noise targets are computed on images without augmentation, so by default they
        are valid only for pairs that are not augmented.

    Returns
    -------
    array of bool, (2, pairs)
        Row 0 for the real images, row 1 for the generated ones.
    """
    valid = np.array([consistent or entry is None for entry in plan], bool)
    return np.stack([valid & (noise_on != "generated"), valid & (noise_on != "real")])


@functools.lru_cache(maxsize=4)
def _epoch(pairs, seed, epoch):
    return seeds.generator(seed, "order", epoch).permutation(pairs)


def _alternatives(count, size, seed, step):
    """Index of the generated image that is used of each pair, (size,)."""
    return np.zeros(size, int) if count == 1 else seeds.generator(seed, "alternatives", step).integers(count, size=size)


def _pairs_used(data, limit, seed):
    """Indices of the training pairs. With a lower limit they are a subset of those with a higher one."""
    count = len(data.real)
    if count == 0:
        raise UserError("the benchmark has no training pairs; raise benchmark.use.train")
    if limit > count:
        raise UserError(f"training.pairs is {limit}, but the benchmark has {count} training pairs; lower it")
    return np.sort(seeds.generator(seed, "pairs").permutation(count)[:limit]) if limit else np.arange(count)


def _auroc(detector, data, accelerator):
    """AUROC on the validation images. Each process scores its share of the batches."""
    logit = np.zeros(len(data.val_label))
    starts = range(0, len(logit), VALIDATION_BATCH)
    for start in starts[accelerator.process_index::accelerator.num_processes]:
        rows = slice(start, start + VALIDATION_BATCH)
        logit[rows] = detector(images.to_tensor(data.val_pixels[rows], accelerator.device)).logit.float().cpu().numpy()
    return float(roc_auc_score(data.val_label, sum_over_processes(logit, accelerator)))
