"""Attention from predicted noise: `(features, noise) -> (features, map)`, four ways, one interface.

features f: (B, D, h, w) from the backbone; noise n_hat: (B, C, H, W), the detector's own prediction. C is 3 with a prior
of pixels; a latent prior's noise has its own channels (4) and an eighth of the image's resolution, down to one value a
feature. The map is (B, h, w), non-negative, sums to 1 over each image, and says where the evidence was taken from.
The paper's abstract names no form; `affinity` is our reading of "globally distributed discrepancies", the other two
follow its published relatives.
"""

import torch
from torch import nn
from torch.nn import functional as F


def build(name, feature_channels, patch, grid, noise_channels=3, dim=32):
    """The attention called `name` for features (B, feature_channels, grid, grid) and noise (B, noise_channels, H, W).

    patch: side of the noise patches that `affinity` compares, in values of the noise; 1 where the noise is as coarse as
    the features; dim: width of its queries and keys. The other forms average the noise over each feature's cell.
    """
    makers = {"none": lambda: NoAttention(), "energy": lambda: EnergyAttention(),
              "gate": lambda: GateAttention(feature_channels, noise_channels=noise_channels),
              "affinity": lambda: AffinityAttention(patch, grid, dim, noise_channels)}
    return makers[name]()


class NoAttention(nn.Module):
    """The features as they are; a uniform map."""

    def forward(self, features, noise):
        b, _, h, w = features.shape
        return features, features.new_full((b, h, w), 1 / (h * w))


class EnergyAttention(nn.Module):
    """Softmax over the image of the standardised local noise energy; a learned, initially mild temperature.

    map = softmax(tau * (e - mean e) / std e), e = log of the mean squared noise per cell; f' = f * (1 + hw * map) / 2.
    """

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, features, noise):
        b, _, h, w = features.shape
        energy = F.adaptive_avg_pool2d(noise.float().square().mean(1, keepdim=True), (h, w)).add(1e-4).log().flatten(1)
        energy = (energy - energy.mean(1, keepdim=True)) / (energy.std(1, keepdim=True) + 1e-4)
        weights = (self.temperature * energy).softmax(1).view(b, h, w)
        return features * (1 + h * w * weights.unsqueeze(1)) / 2, weights


class GateAttention(nn.Module):
    """A spatial bias on the logits of an attention pool and a channel gate, both read from the noise.

    After the error-guided refinement of LaRE (Luo et al., CVPR 2024), with the predicted noise in the error's place.
    """

    def __init__(self, feature_channels, hidden=16, noise_channels=3):
        super().__init__()
        self.embed = nn.Conv2d(2 * noise_channels, hidden, 1)
        self.spatial = nn.Conv2d(hidden, 1, 1)
        self.content = nn.Conv2d(feature_channels, 1, 1)
        self.channel = nn.Linear(hidden, feature_channels)
        for layer in (self.spatial, self.content, self.channel):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features, noise):
        b, _, h, w = features.shape
        n = noise.float()
        moments = torch.cat([F.adaptive_avg_pool2d(part, (h, w)) for part in (n, n.square())], 1)
        hidden = F.gelu(self.embed(moments))
        logits = self.content(features) + self.spatial(hidden)
        weights = logits.float().flatten(1).softmax(1).view(b, h, w)
        gate = 2 * torch.sigmoid(self.channel(hidden.mean((2, 3))))[:, :, None, None]
        return features * gate * (1 + h * w * weights.unsqueeze(1)) / 2, weights


class AffinityAttention(nn.Module):
    """Queries and keys from noise patches, values from the features: places with like noise share their evidence.

    A = softmax(q k^T / sqrt(d)) over all cells of the image; f' = f + gamma * (A f - f) with a learned gamma. The map
    is the mean over queries of A: how much each cell is listened to by the whole image.
    """

    def __init__(self, patch, grid, dim=32, noise_channels=3):
        super().__init__()
        self.grid = grid
        self.embed = nn.Conv2d(noise_channels, dim, patch, patch)
        self.norm = nn.GroupNorm(1, dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.gamma = nn.Parameter(torch.tensor(0.5))

    def forward(self, features, noise):
        b, d, h, w = features.shape
        # (B, C, H, W) -> (B, dim, H/patch, W/patch) -> (B, hw, dim): the energy of each pattern in a cell, not its sign
        tokens = F.adaptive_avg_pool2d(self.embed(noise).float().square().add(1e-4).log(), (h, w))
        tokens = self.norm(tokens).flatten(2).transpose(1, 2)
        q, k = self.query(tokens), self.key(tokens)
        affinity = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)  # (B, hw, hw)
        values = features.float().flatten(2).transpose(1, 2)                  # (B, hw, D)
        shared = (affinity @ values).transpose(1, 2).view(b, d, h, w)
        return features + self.gamma * (shared - features), affinity.mean(1).view(b, h, w)


def entropy(weights):
    """Shannon entropy of each map in bits, from 0 (one cell) to log2(hw) (uniform).

    weights: (B, h, w) summing to 1 over each image; returns (B,), float64.
    """
    flat = weights.flatten(1).double()
    return -(flat * flat.clamp(min=1e-12).log2()).sum(1)


def effective_support(weights):
    """Share of the image a map listens to: 2^entropy / number of cells, from 1/hw (one cell) to 1 (uniform).

    weights: (B, h, w) summing to 1 over each image; returns (B,), float64.
    """
    return entropy(weights).exp2() / weights[0].numel()
