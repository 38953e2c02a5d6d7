"""The training objective: classification plus noise prediction (design of the paper's abstract; weights are ours)."""

import torch
from torch.nn import functional as F


def anl_loss(logit, label, noise=None, target=None, counts=None, loss_weight=1.0, batch=None):
    """BCE(logit, y) + loss_weight * MSE(n_hat, n*).

    logit, label: (B,), label 1 for generated. noise, target: (B, C, h, w) or both None, for a detector without a noise
    head. counts: bool (B,), the images the noise loss is a mean over: those whose target is that of their very pixels
    (an image augmented after the prior saw it is left out), of the classes it is asked of. Default: all. batch: where
    these images are one part of a batch whose losses are summed, its numbers of images and of counted images.
    Returns a dict of scalars: loss, classification_loss, noise_loss (None without a head).
    """
    images, counted = batch or (len(logit), None)
    classification = F.binary_cross_entropy_with_logits(logit.float(), label.float()) * (len(logit) / images)
    if noise is None:
        return {"loss": classification, "classification_loss": classification, "noise_loss": None}
    # a sum over a number, not a mean, whose gradient is written out in full, and in another memory format than the noise's
    error = (noise.float() - target.float()).square().sum((1, 2, 3)) / noise[0].numel()
    counts = torch.ones_like(error) if counts is None else counts.to(error)
    noise_loss = (counts * error).sum() / (counts.sum().clamp(min=1) if counted is None else max(counted, 1))
    return {"loss": classification + loss_weight * noise_loss, "classification_loss": classification,
            "noise_loss": noise_loss}
