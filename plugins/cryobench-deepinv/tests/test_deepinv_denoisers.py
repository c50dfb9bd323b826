"""Priors as deepinv denoisers and deepinv denoisers as priors: ranges, noise levels and results agree."""

import deepinv as dinv
import pytest
import torch
from cryobench_deepinv import as_denoiser, from_denoiser
from cryobench_deepinv.denoisers import ModelFree
from deepinv_small import Wiener, normal, operator, problem, rng

import cryobench as cb
from cryobench.core import meters
from cryobench.errors import CryobenchError
from cryobench.priors.diffusion import DiffusionModel, NoisyImages
from cryobench.solvers.ddnm import Ddnm
from cryobench.solvers.hqs import Hqs
from cryobench.solvers.pinv import Pinv

WIENER = Wiener()


@pytest.fixture(scope="module")
def network() -> DiffusionModel:
    """A random UNet of 16 x 16 images."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        ).eval()  # fmt: skip
    return DiffusionModel(unet.requires_grad_(False), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0))


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.05, torch.tensor(0.3), torch.tensor([0.2]), torch.tensor([[[[2.0]]]])], ids=str)
def test_a_network_is_a_denoiser_of_images_from_0_to_1(network, sigma):
    u = 0.5 + 0.2 * normal(2, 1, 16, 16, dtype=torch.float32)
    with meters.counting() as tally:
        denoised = as_denoiser(network)(u, sigma)
    expected = (network.denoise(2 * u - 1, 2 * float(sigma)) + 1) / 2
    torch.testing.assert_close(denoised, expected)
    assert tally.images == {meters.NETWORK: 2}


@torch.no_grad()
def test_noise_levels_are_per_image_and_level_0_is_the_identity(network):
    u = 0.5 + 0.2 * normal(2, 1, 16, 16, dtype=torch.float32)
    denoiser = as_denoiser(network)
    separate = torch.cat([denoiser(u[:1], 0.1), denoiser(u[1:], 0.4)])
    torch.testing.assert_close(denoiser(u, torch.tensor([0.1, 0.4])), separate, rtol=1e-4, atol=1e-4)
    assert torch.equal(denoiser(u, 0.0), (2 * u - 1 + 1) / 2)


@torch.no_grad()
def test_noisy_images_is_a_denoiser(network):
    """A prior of clean images with the noise of the measured ones, `NoisyImages`, is selected like any model."""
    u, noise = 0.5 + 0.2 * normal(2, 1, 16, 16, dtype=torch.float32), torch.tensor([0.1, 0.3]).reshape(2, 1, 1, 1)
    model = NoisyImages(network, noise)
    separate = torch.cat([as_denoiser(model.select(slice(i, i + 1)))(u[i : i + 1], 0.2) for i in range(2)])
    torch.testing.assert_close(as_denoiser(model)(u, 0.2), separate, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_converting_a_denoiser_to_a_prior_and_back_preserves_it(sigma):
    u = 0.5 + 0.2 * normal(2, 1, 16, 16)
    converted = as_denoiser(from_denoiser(WIENER))
    torch.testing.assert_close(converted(u, sigma), WIENER(u, sigma), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("t", [0, 40, 333.25, 999])
def test_as_a_diffusion_model_it_predicts_the_image_and_the_noise(t):
    """In particular x_t = sqrt(a) x0 + sqrt(1 - a) eps, with a separate level per image."""
    model, x_t = from_denoiser(WIENER).load("cpu"), normal(2, 1, 16, 16)
    eps, x0 = model.predict(x_t, t)
    a = model.alpha_between(t)
    torch.testing.assert_close(a**0.5 * x0 + (1 - a) ** 0.5 * eps, x_t)
    z, s = x_t / a**0.5, ((1 - a) / a) ** 0.5
    torch.testing.assert_close(x0, 2 * WIENER((z + 1) / 2, s / 2) - 1, rtol=1e-5, atol=1e-6)
    each = model.network(x_t, torch.tensor([t, 500.0]))
    torch.testing.assert_close(each[:1], model.network(x_t[:1], t))


def test_our_solvers_take_a_denoiser_of_deepinv():
    """hqs and ddnm with the exact denoiser of the images are better than the floor."""
    x = WIENER.draw(2)
    measured = problem(operator("sumpool:4"), x)
    errors = {type(solver).__name__: (solver.solve(measured, rng=rng(2)).x - x).square().mean()
              for solver in (Pinv(), Hqs(from_denoiser(WIENER)), Ddnm(from_denoiser(WIENER), steps=20))}  # fmt: skip
    assert errors["Hqs"] < 0.8 * errors["Pinv"]
    assert errors["Ddnm"] < errors["Pinv"]


@torch.no_grad()
@pytest.mark.parametrize("source", ["tv", "wavelet", "median"])
def test_the_registered_denoisers_are_deepinvs(source):
    u = (0.5 + 0.1 * normal(2, 1, 16, 16)).float()
    ours = as_denoiser(ModelFree(source, strength=0.7))(u, 0.2)
    theirs = {"tv": dinv.models.TVDenoiser(ths=0.14), "median": dinv.models.MedianFilter(kernel_size=3),
              "wavelet": dinv.models.WaveletDenoiser(wv="sym8")}[source]  # fmt: skip
    for i in range(2):
        if source == "tv":
            theirs.restart = True
        one = u[i : i + 1]
        expected = theirs(one, ths=0.14) if source == "wavelet" else theirs(one)
        torch.testing.assert_close(ours[i : i + 1], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: ModelFree("tv"), lambda: from_denoiser(dinv.models.TVDenoiser())])
def test_a_denoiser_with_a_warm_start_is_restarted_for_each_image(make):
    """deepinv's TV is warm-started from the previous image; a result must not depend on it."""
    u = 0.5 + 0.1 * normal(2, 1, 16, 16)
    denoiser = as_denoiser(make())
    first = denoiser(u[:1], 0.05)
    denoiser(u[1:], 0.5)
    assert torch.equal(denoiser(u[:1], 0.05), first)


def test_missing_ptwt_is_reported(monkeypatch):
    monkeypatch.setattr("cryobench_deepinv.denoisers.find_spec", lambda _: None)
    with pytest.raises(CryobenchError, match="ptwt"):
        ModelFree("wavelet").check((16, 16))
    assert "ptwt" in cb.solver("deepinv_wavelet_pgd").unsupported(problem(operator("identity"), normal(1, 1, 16, 16)))


@pytest.mark.parametrize("spec", ["strength=0", "source=median,side=4", "source=bm3d"])
def test_invalid_parameters_are_refused(spec):
    text = ",".join(f"prior.{item}" for item in spec.split(","))
    with pytest.raises(CryobenchError):
        cb.solver(f"deepinv_red:prior=deepinv_denoiser,{text}")


def test_a_registered_denoiser_shows_only_its_own_parameters():
    from cryobench.spec import fields_of

    assert [field.name for field in fields_of(ModelFree)] == ["source", "strength", "side"]
    assert hash(ModelFree()) == hash(ModelFree("tv"))
    assert ModelFree().weights_digest() == ""


def test_the_wiener_denoiser_of_the_tests_is_the_posterior_mean():
    """Its mean squared error is that of the exact Wiener filter."""
    wiener, n, sigma = Wiener(), 400, 0.1
    u = (wiener.draw(n) + 1) / 2
    error = (wiener(u + sigma * normal(*u.shape, seed=1), sigma) - u).square().mean()
    expected = (wiener.power * sigma**2 / (wiener.power + sigma**2)).mean()
    assert float(error) == pytest.approx(float(expected), rel=0.02)
