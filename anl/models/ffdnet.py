"""FFDNet, a denoiser that is not a diffusion model, as a control for the noise of the prior."""

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from anl.io import UserError, reason

WIDTH, LAYERS = 96, 12


class FFDNet(nn.Module):
    """Removes Gaussian noise of a known standard deviation from colour images.

    References
    ----------
    Zhang, Zuo and Zhang, "FFDNet: Toward a fast and flexible solution for CNN-based image denoising", IEEE TIP 2018.
    """

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(4 * 3 + 1, WIDTH, 3, padding=1)]
        for _ in range(LAYERS - 2):
            layers += [nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
        self.model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(WIDTH, 4 * 3, 3, padding=1))

    def forward(self, x, sigma):
        """Images (B, 3, H, W) in [0, 1], and the standard deviation of their noise (B, 1, 1, 1) -> clean images."""
        height, width = x.shape[2:]
        small = F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2)
        level = sigma.to(x).expand(-1, -1, *small.shape[2:])
        return F.pixel_shuffle(self.model(torch.cat([small, level], 1)), 2)[..., :height, :width]


def load_ffdnet(path, device="cpu"):
    """FFDNet for colour images, frozen, from a safetensors file of its authors' weights.

    Raises
    ------
    UserError
        If the file is missing or damaged, or its weights are not FFDNet's.
    """
    network = FFDNet()
    try:
        network.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path} is missing (method.denoiser_weights); convert KAIR's ffdnet_color to safetensors") from None
    except Exception as problem:  # safetensors' and torch's errors
        raise UserError(f"{path} does not hold FFDNet's weights for colour images ({reason(problem)}); get it again") from None
    return network.requires_grad_(False).to(device).eval()
