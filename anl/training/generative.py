"""Training priors and generators: models of photographs, on the same loop as detectors."""

import torch

from anl import seeds
from anl.io import UserError
from anl.training.loop import fit

__all__ = ["train_generative"]


def train_generative(name, models, loss, sampler, config, *, seed, accelerator, checkpoint=None, on_point=None,
                     before_step=None):
    """Train one or several networks together on batches of crops, in place.

    Parameters
    ----------
    name : str
        Of the model; names its random streams.
    models : dict of str to nn.Module
        Trained together. A frozen network that the loss needs (the decoder of a latent model) is not among them.
    loss : callable (models, images, generator, step) -> scalar Tensor, or dict with "loss"
        A mean over `images` (B, 3, H, W) in [-1, 1], on the device. `generator` is a torch.Generator on the CPU, a pure
        function of seed, name, step and `Part`: noise does not depend on what was drawn before. `step` counts from 0.
    sampler : object with `batch(step) -> Tensor (B, 3, H, W)`
        Batch of crops, a pure function of `step`.
    config : anl.config.PriorConfig or GeneratorConfig
        Its steps, learning_rate, weight_decay, warmup_steps, final_learning_rate, clip_norm and ema are used.
    seed : int
    accelerator : accelerate.Accelerator
        Several processes share each batch. They draw other noise than one process would, of the same distribution.
    checkpoint : anl.training.loop.Checkpoint or None
    on_point : callable or None
        See `anl.training.loop.fit`.
    before_step : callable (step) or None
        Called before the loss of each step, in all processes: fills a codebook, say. A pure function of the step and the
        models.

    Returns
    -------
    list of dict
        The curve; empty if `config.steps` is 0, which leaves the networks untrained.

    Raises
    ------
    UserError
        If a loss is not finite, or a batch is smaller than the number of processes.
    """
    for model in models.values():
        model.to(accelerator.device, memory_format=torch.channels_last).train()
    if config.steps == 0:
        return []

    def loss_at(step, part):
        if before_step:
            before_step(step)
        batch = sampler.batch(step)
        images = part.of(batch).to(accelerator.device, memory_format=torch.channels_last)
        if len(images) == 0:
            raise UserError(f"{name}: a batch of {len(batch)} cannot be shared by {part.count} processes; raise batch_size")
        found = loss(models, images, seeds.torch_generator(seed, name, "draws", step, part.index), step)
        found = found if isinstance(found, dict) else {"loss": found}
        share = len(images) / len(batch)
        return {key: None if value is None else value * share for key, value in found.items()}

    curve = fit(models, loss_at, steps=config.steps, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
                warmup_steps=config.warmup_steps, final_learning_rate=config.final_learning_rate,
                clip_norm=config.clip_norm, ema=config.ema, accelerator=accelerator, seed=seed, checkpoint=checkpoint,
                name=name, on_point=on_point)
    for model in models.values():
        model.eval()
    return curve
