import pytest
import torch

from anl.models.generators import diffusion


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.rand(3, 3, 16, 16, generator=draws(9)) * 2 - 1
EXACT = {"precision": "fp32"}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusion.build_unet([8, 8], 1).eval()


class Network(torch.nn.Module):
    """A network given by a function of (x, timestep)."""

    def __init__(self, function):
        super().__init__()
        self.function, self.unused = function, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, timestep):
        return type("Output", (), {"sample": self.function(x, timestep)})


def perfect_diffusion(x):
    """A perfect noise predictor for the images x."""
    alphas = diffusion.noise_scheduler().alphas_cumprod

    def noise(noised, timestep):
        alpha = alphas[torch.as_tensor(timestep).flatten()[0].long()]
        return (noised - alpha.sqrt() * x) / (1 - alpha).sqrt()

    return Network(noise)


def perfect_flow(x):
    return Network(lambda noised, timestep: (noised - x) / (timestep.flatten()[0] / diffusion.TRAIN_STEPS))


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_a_perfect_model_returns_the_image(sampler):
    made = diffusion.denoise_from(perfect_diffusion(X), X, draws(), sampler=sampler, strength=0.1, inference_steps=5,
                                  **EXACT)
    assert (made - X).abs().max() < 0.05


def test_a_perfect_flow_returns_the_image():
    made = diffusion.flow_from(perfect_flow(X), X, draws(), strength=0.2, inference_steps=4, **EXACT)
    torch.testing.assert_close(made, X, atol=1e-4, rtol=0)


def test_one_ddim_step_is_its_formula(unet):
    """Song et al. (2021), eq. 12 with sigma = 0, from timestep 200 to the image."""
    made = diffusion.denoise_from(unet, X, draws(3), sampler="ddim", strength=0.5, inference_steps=1, **EXACT)
    scheduler = diffusion.noise_scheduler("ddim")
    scheduler.set_timesteps(2)
    timestep = scheduler.timesteps[-1]
    alpha = scheduler.alphas_cumprod[timestep]
    noised = alpha.sqrt() * X + (1 - alpha).sqrt() * torch.randn(X.shape, generator=draws(3))
    with torch.no_grad():
        expected = (noised - (1 - alpha).sqrt() * unet(noised, timestep).sample) / alpha.sqrt()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_more_strength_changes_more(unet):
    change = [(diffusion.denoise_from(unet, X, draws(), sampler="ddim", strength=strength,
                                      inference_steps=4) - X).abs().mean()
              for strength in (0.02, 0.1, 0.4)]
    assert change == sorted(change)


def test_losses_of_a_perfect_and_a_silent_model():
    silent = Network(lambda x, t: x * 0)
    assert diffusion.noise_prediction_loss(silent, X, draws(), **EXACT) == pytest.approx(1, abs=0.1)  # the noise's variance
    one = X[:1]
    assert diffusion.noise_prediction_loss(perfect_diffusion(one), one, draws(), **EXACT) < 1e-4
    assert diffusion.flow_loss(perfect_flow(one), one, draws(), **EXACT) < 1e-4


def test_losses_draw_below_the_strength():
    seen = []
    listener = Network(lambda x, timestep: seen.extend(timestep.tolist()) or x)
    for seed in range(30):
        diffusion.noise_prediction_loss(listener, X, draws(seed), last=99, **EXACT)
        diffusion.flow_loss(listener, X, draws(seed), 0.1, **EXACT)
    assert 60 < max(seen) < 100 and min(seen) >= 0


def test_inpainting_keeps_the_known_part(unet):
    mask = diffusion.random_boxes(len(X), 16, [0.25, 0.5], draws(2))
    run = {"sampler": "ddpm", "strength": 0.3, "inference_steps": 3, "mask": mask}
    one, two = (diffusion.denoise_from(unet, X, draws(1), **run) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(one[~mask.expand_as(X)], X[~mask.expand_as(X)])
    assert (one != X)[mask.expand_as(X)].float().mean() > 0.99


def test_boxes_cover_the_given_share():
    shares = diffusion.random_boxes(200, 128, [0.25, 0.5], draws()).float().mean((1, 2, 3))
    assert 0.24 < shares.min() < 0.3 and 0.45 < shares.max() < 0.51


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_stay_in_range_where_the_model_errs(sampler):
    """A model that sees too little noise everywhere: its estimate of the clean image grows from step to step."""
    made = diffusion.sample(Network(lambda x, t: x * 0.5), X.shape, draws(), sampler=sampler, inference_steps=20,
                            **EXACT)
    assert made.abs().max() < 1.1
