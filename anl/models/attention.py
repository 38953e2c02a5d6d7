"""Attention from predicted noise: `(features, noise) -> (features, map)`, one interface for all forms.

With mean pooling and a linear classifier, any `f' = f + gamma (A f - f)` equals weighted pooling with the column means
of `A`. `energy`, `gate` and `affinity` therefore weight cells; `relation` puts a residual MLP between the mixing and
the pooling, so that relations between cells can serve as evidence. `transfer`, `erase` and `spread` act in training
only.

Shapes: features (B, D, h, w) from the backbone; noise (B, C, H, W), the detector's own prediction, on the prior's grid
(the image's pixels, or the cells of a latent prior). A map is (B, h, w), non-negative, and sums to 1 over each image.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from anl.config import TOKEN_ATTENTIONS, TRAINING_ATTENTIONS
from anl.io import UserError, pick

__all__ = ["ATTENTIONS", "Attention", "OtherNoise", "build_attention", "cell_means", "effective_support", "energy_map",
           "entropy", "evidence_map", "uniform_map"]

ATTENTIONS = ("none", "energy", "gate", *TOKEN_ATTENTIONS, *TRAINING_ATTENTIONS)


class Attention(nn.Module):
    """Base class, and the form `none`: features unchanged, a uniform map, no loss."""

    needs_noise = False   # whether it reads the noise in training
    reads_noise = False   # whether it reads the noise in eval mode; if not, `Detector.for_inference` drops the noise head
    training_only = True  # whether it is the identity in eval mode
    other_noise = False   # whether it gets the noise of another image, see `OtherNoise`
    loss = None           # or a method (features, noise, cell_logits (B, h, w)) -> training loss per image, (B,)

    def forward(self, features, noise):
        return features, uniform_map(features)


class Neutral:
    """Mixin for a layer whose weights and bias are initialised to zero."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class NeutralLinear(Neutral, nn.Linear):
    pass


class NeutralConv2d(Neutral, nn.Conv2d):
    pass


class EnergyAttention(Attention):
    """Pooling weighted by the local noise energy, with a learned, initially mild temperature.

    map = softmax(tau * (e - mean e) / std e), e = log of the mean squared noise per cell; f' = f * (1 + hw * map) / 2.
    """

    needs_noise = reads_noise = True
    training_only = False

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, features, noise):
        b, _, h, w = features.shape
        energy = cell_means(noise.float().square().mean(1, keepdim=True), h, w).add(1e-4).log().flatten(1)
        energy = energy - energy.mean(1, keepdim=True)
        energy = energy / (energy.square().mean(1, keepdim=True) + 1e-8).sqrt()  # differentiable at zero, unlike std
        weights = (self.temperature * energy).softmax(1).view(b, h, w)
        return _weighted(features, weights), weights


class GateAttention(Attention):
    """A spatial bias on the logits of an attention pool and a channel gate, both read from the noise; starts neutral.

    References
    ----------
    Luo et al., "LaRE^2: Latent reconstruction error based method for diffusion-generated image detection", CVPR 2024:
    its error-guided refinement, with the predicted noise in place of the reconstruction error.
    """

    needs_noise = reads_noise = True
    training_only = False

    def __init__(self, feature_channels, noise_channels=3, width=16):
        super().__init__()
        self.embed = nn.Conv2d(2 * noise_channels, width, 1)
        self.spatial = NeutralConv2d(width, 1, 1)
        self.content = NeutralConv2d(feature_channels, 1, 1)
        self.channel = NeutralLinear(width, feature_channels)

    def forward(self, features, noise):
        b, _, h, w = features.shape
        noise = noise.float()
        moments = torch.cat([cell_means(noise, h, w), cell_means(noise.square(), h, w)], 1)  # (B, 2C, h, w)
        hidden = F.gelu(self.embed(moments))
        logits = self.content(features) + self.spatial(hidden)
        weights = logits.float().flatten(1).softmax(1).view(b, h, w)
        gate = 2 * torch.sigmoid(self.channel(hidden.mean((2, 3))))[:, :, None, None]
        return _weighted(features * gate, weights), weights


class Tokens(nn.Module):
    """One token per cell, (B, hw, dim): embedded features, or the log energy of learned linear filters of the noise."""

    def __init__(self, channels, dim, patch=1, of_noise=True):
        super().__init__()
        self.of_noise = of_noise
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        self.norm = nn.GroupNorm(1, dim)

    def forward(self, features, noise):
        cells = self.embed(noise if self.of_noise else features).float()
        if self.of_noise:  # (B, dim, H/patch, W/patch) -> (B, dim, h, w)
            cells = cell_means(cells.square().add(1e-4).log(), *features.shape[2:])
        return self.norm(cells).flatten(2).transpose(1, 2)


class Mixing(nn.Module):
    """Scaled dot-product attention between cells: queries and keys from tokens, values from the features.

    Returns the mixed values (B, hw, D), the values (B, hw, D) and the matrix A (B, hw, hw), whose rows sum to 1.
    """

    def __init__(self, tokens, dim):
        super().__init__()
        self.tokens = tokens
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)

    def forward(self, features, noise):
        tokens = self.tokens(features, noise)
        q, k = self.query(tokens), self.key(tokens)
        matrix = (q @ k.transpose(1, 2)).float().mul(q.shape[-1] ** -0.5).softmax(-1)
        values = features.float().flatten(2).transpose(1, 2)
        return matrix @ values, values, matrix


class AffinityAttention(Attention):
    """Cells with similar noise share their features: f' = f + gamma * (A f - f) with a learned gamma.

    The map is the mean over queries of A.
    """

    needs_noise = reads_noise = True
    training_only = False

    def __init__(self, mixing):
        super().__init__()
        self.mixing = mixing
        self.gamma = nn.Parameter(torch.tensor(0.5))

    def forward(self, features, noise):
        mixed, values, matrix = self.mixing(features, noise)
        return features + self.gamma * _places(mixed - values, features), _received(matrix, features)


class RelationAttention(Attention):
    """Mixing of cells by their noise, then a residual MLP per cell before the pooling: f' = f + MLP([f, A f]).

    The block is initialised to the identity. The map is the mean over queries of A. The tokens of `mixing` are computed
    from the image's noise or, in controls, from the features (`relation_self`) or another image's noise
    (`relation_other`).
    """

    training_only = False

    def __init__(self, mixing, feature_channels, width, other_noise=False):
        super().__init__()
        self.needs_noise = self.reads_noise = mixing.tokens.of_noise
        self.other_noise = other_noise
        self.mixing = mixing
        self.mlp = nn.Sequential(nn.LayerNorm(2 * feature_channels), nn.Linear(2 * feature_channels, width), nn.GELU(),
                                 NeutralLinear(width, feature_channels))

    def forward(self, features, noise):
        mixed, values, matrix = self.mixing(features, noise)
        change = self.mlp(torch.cat([values, mixed], 2))  # (B, hw, 2D) -> (B, hw, D)
        return features + _places(change, features), _received(matrix, features)


class TransferAttention(Attention):
    """Training only: the features' spatial energy is pulled towards that of the predicted noise.

    loss = KL(p || q), with p and q the `energy_map` of the noise and of the features. The noise is the teacher: no
    gradient flows into it.

    References
    ----------
    Zagoruyko and Komodakis, "Paying more attention to attention", ICLR 2017 (activation-based transfer; there between
    networks, with a squared distance).
    """

    needs_noise = True

    def loss(self, features, noise, cell_logits):
        h, w = features.shape[2:]
        teacher, student = energy_map(noise.detach(), h, w), energy_map(features, h, w)
        return (teacher * (teacher.log() - student.log())).sum((1, 2))


class EraseAttention(Attention):
    """Training only: a share of the cells, those with the strongest noise, is hidden, so that others must give evidence.

    The features of hidden cells are set to zero and the others scaled up, so that the mean is over the visible cells.
    (Hiding in image space would need a second forward pass, and the edges of hidden cells would be evidence.) The same
    cells are hidden in both images of a pair, because their positions could otherwise reveal the class: those with the
    largest share of noise energy, averaged over the pair. A training batch holds B/2 real images, then their B/2
    partners in the same order. The choice of cells has no gradient.
    """

    needs_noise = True

    def __init__(self, share=0.25):
        super().__init__()
        self.share = share

    def forward(self, features, noise):
        if not self.training:
            return super().forward(features, noise)
        b, _, h, w = features.shape
        if b % 2:
            raise UserError(f"attention 'erase' trains on pairs, and a batch holds {b} images; use an even batch size")
        loud = energy_map(noise.detach(), h, w).view(2, b // 2, h * w).mean(0)
        hidden = min(max(1, round(self.share * h * w)), h * w - 1)
        ranks = loud.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        visible = (ranks >= hidden).to(features).view(-1, 1, h, w).repeat(2, 1, 1, 1)
        scale = h * w / (h * w - hidden)
        return features * (visible * scale), visible[:, 0] / (h * w - hidden)


class SpreadAttention(Attention):
    """Training only: rewards evidence that is spread over the image; loss = 1 - effective support of the evidence map.

    It works without a noise head.
    """

    def loss(self, features, noise, cell_logits):
        return 1 - effective_support(evidence_map(cell_logits)).float()


class OtherNoise(nn.Module):
    """Replaces an image's noise by that of another image: the control `relation_other`.

    In training, the noise is rolled along the batch by a quarter of its length. The first half of a batch are real
    images and the second half their partners, so half of the images get noise of their own class and none gets its
    partner's. The noise is therefore independent of the class. In eval mode, every image gets the noise of one reference
    image of side `size`, the first of the first training batch, so that scores do not depend on the batch.
    """

    def __init__(self, size):
        super().__init__()
        self.register_buffer("reference", torch.zeros(1, 3, size, size))
        self.register_buffer("stored", torch.zeros((), dtype=torch.bool))

    def forward(self, x, noise, predict):
        """Image (B, 3, H, W), its noise (B, C, h, w), and the function from images to noise -> noise (B, C, h, w)."""
        if self.training:
            with torch.no_grad():  # written once, without a branch on a tensor's value
                self.reference.copy_(torch.where(self.stored, self.reference, self._cropped(x[:1], self.reference)))
                self.stored.fill_(True)
            return noise.roll(max(1, len(noise) // 4), 0)
        return predict(self._cropped(self.reference, x)).expand_as(noise)

    @staticmethod
    def _cropped(image, like):
        height, width = like.shape[2:]
        if image.shape[2] < height or image.shape[3] < width:
            raise UserError(f"attention 'relation_other' works on images of {image.shape[2]} x {image.shape[3]} pixels "
                            f"at most, and one has {height} x {width}; crop it")
        return image[:, :, :height, :width]


def build_attention(name, feature_channels, grid, noise_size, *, noise_channels=3, dim=32, patch=1, gate_width=16,
                    erase_share=0.25):
    """Build the attention form `name`, one of `ATTENTIONS`.

    Parameters
    ----------
    feature_channels, grid, noise_size, noise_channels : int
        Channels and side of the features, side and channels of the noise.
    dim, patch : int
        Width of queries, keys and the MLP of `relation`; side, in values, of the noise patches that `affinity` and
        `relation` compare.
    gate_width : int
        Hidden channels of `gate`.
    erase_share : float
        Share of the cells that `erase` hides, in (0, 1); at least one is hidden and one visible.

    Raises
    ------
    UserError
        If the name is unknown, or noise and features have sides of which neither divides the other.
    """
    pick("method.attention", name, ATTENTIONS)
    patch = patch if name in TOKEN_ATTENTIONS and name != "relation_self" else 1
    if noise_size % patch:
        raise UserError(f"detector.patch: noise of {noise_size} values a side cannot be cut into patches of {patch}; "
                        "choose a divisor")
    if name not in ("none", "relation_self", "spread"):
        _ratio(noise_size // patch, grid)
    if name in TOKEN_ATTENTIONS:
        own = name == "relation_self"
        mixing = Mixing(Tokens(feature_channels if own else noise_channels, dim, patch, of_noise=not own), dim)
        if name == "affinity":
            return AffinityAttention(mixing)
        return RelationAttention(mixing, feature_channels, dim, other_noise=name == "relation_other")
    builders = {"none": Attention, "energy": EnergyAttention, "gate": lambda: GateAttention(feature_channels, noise_channels, gate_width),
                "transfer": TransferAttention, "erase": lambda: EraseAttention(erase_share),
                "spread": SpreadAttention}
    return builders[name]()


def cell_means(x, h, w):
    """`F.adaptive_avg_pool2d(x, (h, w))`, written with reshapes because PyTorch's is not deterministic on CUDA.

    x : (B, C, H, W), H a multiple or a divisor of h, and W of w; otherwise UserError.
    """
    for axis, cells in ((2, h), (3, w)):
        pool, repeat = _ratio(x.shape[axis], cells)
        if pool > 1:
            x = x.unflatten(axis, (cells, pool)).mean(axis + 1)
        if repeat > 1:
            shape = [-1] * 5
            shape[axis + 1] = repeat
            x = x.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
    return x


def _ratio(size, cells):
    """(values in a cell, cells in a value) along one axis; one of the two is 1."""
    if size % cells and cells % size:
        raise UserError(f"noise of {size} values a side does not fit features of {cells} cells a side; choose an image "
                        "size that is a multiple of detector.stride, and a detector.patch that divides the stride")
    return max(size // cells, 1), max(cells // size, 1)


def energy_map(x, h, w):
    """Share of the image's energy in each cell: (B, C, H, W) -> (B, h, w), positive, sums to 1 over each image."""
    energy = cell_means(x.float().square().mean(1, keepdim=True), h, w)[:, 0]
    energy = energy + 1e-6 * energy.mean((1, 2), keepdim=True) + 1e-12  # no share is zero, whatever the scale
    return energy / energy.sum((1, 2), keepdim=True)


def evidence_map(cell_logits):
    """Each cell's share of the absolute contributions to the logit: (B, h, w) -> (B, h, w), sums to 1 per image."""
    size = cell_logits.float().abs() + 1e-12
    return size / size.sum((1, 2), keepdim=True)


def uniform_map(features):
    """The map of a detector without attention: features (B, D, h, w) -> (B, h, w)."""
    b, _, h, w = features.shape
    return features.new_full((b, h, w), 1 / (h * w), dtype=torch.float32)


def entropy(weights):
    """Shannon entropy of maps (B, h, w) in bits, from 0 (one cell) to log2(hw) (uniform): float64 (B,)."""
    flat = weights.flatten(1).double()
    return -(flat * flat.clamp(min=1e-12).log2()).sum(1)


def effective_support(weights):
    """Share of the image that maps (B, h, w) cover: 2 ** entropy / hw, from 1/hw (one cell) to 1: float64 (B,)."""
    return entropy(weights).exp2() / math.prod(weights.shape[1:])


def _weighted(features, weights):
    """Mean of the features and of the features times h w times the map; a uniform map changes nothing."""
    return features * (1 + weights[0].numel() * weights.unsqueeze(1)) / 2


def _places(tokens, features):
    """Tokens (B, hw, D) -> (B, D, h, w), the features' shape."""
    return tokens.transpose(1, 2).reshape(features.shape)


def _received(matrix, features):
    """How much attention each cell receives: (B, hw, hw) -> (B, h, w)."""
    return matrix.mean(1).view(-1, *features.shape[2:])
