"""The training objective: classification plus noise prediction (design of the paper's abstract; weights are ours)."""

from torch.nn import functional as F


def anl_loss(logit, label, noise=None, target=None, loss_weight=1.0):
    """BCE(logit, y) + loss_weight * MSE(n_hat, n*).

    logit, label: (B,), label 1 for generated. noise, target: (B, 3, H, W) or both None, for a detector without a noise
    head. Returns a dict of scalars: loss, classification_loss, noise_loss (None without a head).
    """
    classification = F.binary_cross_entropy_with_logits(logit.float(), label.float())
    if noise is None:
        return {"loss": classification, "classification_loss": classification, "noise_loss": None}
    noise_loss = F.mse_loss(noise.float(), target.float())
    return {"loss": classification + loss_weight * noise_loss, "classification_loss": classification,
            "noise_loss": noise_loss}
