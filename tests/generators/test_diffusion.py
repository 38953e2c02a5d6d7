import pytest
import torch

from anl import seeds
from anl.generators import diffusion


@pytest.fixture(scope="module")
def unet():
    seeds.fix(0, "unet")
    return diffusion.build_unet([8, 8], 1).eval()


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.rand(3, 3, 16, 16, generator=draws(9)) * 2 - 1


class Oracle(torch.nn.Module):
    """Answers as a perfect model of the single image `x` would."""

    def __init__(self, x, kind):
        super().__init__()
        self.x, self.kind = x, kind
        self.alphas = diffusion.noise_scheduler().alphas_cumprod

    def forward(self, noised, timestep):
        t = timestep.flatten()[0] if torch.is_tensor(timestep) else torch.tensor(timestep)
        if self.kind == "flow":
            sigma = t / diffusion.TRAIN_STEPS
            answer = (noised - self.x) / sigma  # noise - x on the straight path
        else:
            alpha = self.alphas[t.long()]
            answer = (noised - alpha.sqrt() * self.x) / (1 - alpha).sqrt()
        return type("Output", (), {"sample": answer})


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_a_perfect_model_returns_the_image(sampler):
    x = diffusion.denoise_from(Oracle(X, "epsilon"), X, sampler=sampler, strength=0.1, inference_steps=5,
                               generator=draws(), autocast=False)
    assert (x - X).abs().max() < 0.05


def test_a_perfect_flow_returns_the_image():
    x = diffusion.flow_from(Oracle(X, "flow"), X, strength=0.2, inference_steps=4, generator=draws(), autocast=False)
    torch.testing.assert_close(x, X, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_regeneration_follows_its_draws(unet, sampler):
    run = {"sampler": sampler, "strength": 0.05, "inference_steps": 2}
    one, two, three = (diffusion.denoise_from(unet, X, generator=draws(seed), **run) for seed in (0, 0, 1))
    assert one.shape == X.shape and torch.equal(one, two) and not torch.equal(one, three)


def test_more_strength_changes_more(unet):
    change = [(diffusion.denoise_from(unet, X, sampler="ddim", strength=strength, inference_steps=4, generator=draws())
               - X).abs().mean() for strength in (0.02, 0.1, 0.4)]
    assert change == sorted(change)


def test_losses_of_a_perfect_and_a_silent_model():
    silent = type("Silent", (torch.nn.Module,), {"forward": lambda self, x, t: type("O", (), {"sample": x * 0})})()
    assert diffusion.epsilon_loss(silent, X, draws(), autocast=False) == pytest.approx(1, abs=0.1)  # variance of noise
    one = X[:1]
    assert diffusion.epsilon_loss(Oracle(one, "epsilon"), one, draws(), autocast=False) < 1e-4
    assert diffusion.flow_loss(Oracle(one, "flow"), one, draws(), autocast=False) < 1e-4


def test_loss_draws_stay_below_the_strength():
    seen = []

    class Listener(torch.nn.Module):
        def forward(self, x, t):
            seen.extend(t.tolist())
            return type("Output", (), {"sample": x})

    for seed in range(30):
        diffusion.epsilon_loss(Listener(), X, draws(seed), 0.1, autocast=False)
    assert 60 < max(seen) < 100 and min(seen) >= 0


def test_inpainting_keeps_what_is_known(unet):
    mask = diffusion.random_boxes(len(X), 16, [0.25, 0.5], draws(2))
    run = {"sampler": "ddpm", "strength": 0.3, "inference_steps": 3}
    one, two = (diffusion.inpaint(unet, X, mask, generator=draws(1), **run) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(one[~mask.expand_as(X)], X[~mask.expand_as(X)])
    assert (one != X)[mask.expand_as(X)].float().mean() > 0.99


def test_boxes_cover_the_asked_share():
    masks = diffusion.random_boxes(200, 128, [0.25, 0.5], draws())
    shares = masks.float().mean((1, 2, 3))
    assert 0.24 < shares.min() < 0.3 and 0.45 < shares.max() < 0.51


def test_samples_follow_their_draws(unet):
    run = {"sampler": "ddim", "inference_steps": 2}
    one, two, three = (diffusion.sample(unet, X.shape, generator=draws(seed), **run) for seed in (0, 0, 1))
    assert one.shape == X.shape and torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_stay_in_range_where_the_model_errs(sampler):
    """A model that sees too little noise everywhere: what it takes for clean grows from step to step."""
    blind = type("Blind", (torch.nn.Module,), {"forward": lambda self, x, t: type("O", (), {"sample": x * 0.5})})()
    made = diffusion.sample(blind, X.shape, sampler=sampler, inference_steps=20, generator=draws(), autocast=False)
    assert made.abs().max() < 1.1
