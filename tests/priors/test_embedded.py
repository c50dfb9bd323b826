"""The packaged priors: their training data, their sizes, and their quality on held-out structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryobench.core import OperatorRecipe, Problem, build_operator
from cryobench.io.scaling import minmax
from cryobench.operators.fourier import Fourier
from cryobench.operators.noise import NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.priors.diffusion import CARD, Embedded, Folds, NoisyImages
from cryobench.priors.model_folder import find_model
from cryobench.priors.sparsity import Sparsity
from cryobench.priors.tv import TotalVariation
from cryobench.priors.wavelet import WaveletSparsity
from cryobench.rng import Rng
from cryobench.solvers.hqs import Hqs
from cryobench.solvers.pinv import Pinv
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import catalogue

FOLDERS = Path(__file__).parents[2] / "cryobench" / "priors"
PACKAGED = [(Embedded(), {"train"}, 16, 20_000), (Folds(), {"train", "folds"}, 256, 4_000)]
"""With the splits of the training images, the batch and the fewest steps."""
BY_NAME = pytest.mark.parametrize(("prior", "splits", "batch", "steps"), PACKAGED, ids=["embedded", "folds"])
HELD_OUT = "6zu5+6zu5-large+6zu5-small"
IMAGES = 6


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    """Images [B, 1, 128, 128] of the held-out structures, through the CTF and without noise, as it was trained on."""
    stack = Simulate(HELD_OUT, snr=None, seed=7).open()
    images = [minmax(image := stack.read(i), "").apply(image) for i in range(IMAGES)]
    return torch.from_numpy(np.stack(images)).unsqueeze(1)


def noisy(images: torch.Tensor, sigma: float) -> torch.Tensor:
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def decibels(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean PSNR, data range 2."""
    return float((10 * torch.log10(4 / (x - truth).square().mean((1, 2, 3)))).mean())


def oracle(prior: Sparsity, z: torch.Tensor, truth: torch.Tensor, sigma: float) -> float:
    """The best mean PSNR of argmin 1/2 ||x - z||^2 + lam R(x) over lam, chosen with the truth."""
    lams = [sigma * factor for factor in (0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0, 6.0)]
    weights = [torch.full((len(z), 1, 1, 1), lam) for lam in lams]
    found = [decibels(prior.prox(z, weight), truth) for weight in weights]
    assert max(found) not in (found[0], found[-1]), "the best lam lies at the end of the range"
    return max(found)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_they_denoise_held_out_particles_better_than_tv_and_wavelets_with_the_best_lam(held_out, sigma):
    z = noisy(held_out, sigma)
    with torch.no_grad():
        ours, folds = (decibels(prior.load().denoise(z, sigma), held_out) for prior in (Embedded(), Folds()))
    tv, wavelet = (oracle(prior, z, held_out, sigma) for prior in (TotalVariation(), WaveletSparsity()))
    # docs/diffusion.md shows them
    print(f"\nsigma {sigma}: embedded {ours:.2f}, folds {folds:.2f}, tv {tv:.2f}, wavelet {wavelet:.2f} dB")
    assert ours > max(tv, wavelet) + (1.0 if sigma == 0.3 else 0.0)
    assert folds > max(tv, wavelet) + (1.5 if sigma == 0.3 else 0.0)


@BY_NAME
def test_it_was_not_trained_on_structures_of_the_test_split(prior, splits, batch, steps):
    trained = {name for origin in prior.trained_on() for name in origin["structure"].split(",")}
    entries = catalogue()
    assert trained
    assert {entries[name]["split"] for name in trained} == splits
    seen = {entries[name]["pdb"] for name in trained}
    assert not seen & {entry["pdb"] for entry in entries.values() if entry["split"] not in splits}


@BY_NAME
def test_it_is_small_and_complete_and_has_a_card(prior, splits, batch, steps):
    folder = FOLDERS / prior.source
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 20 * 2**20
    card = find_model(str(folder)).card
    assert card["image_shape"] == [128, 128]
    assert card["settings"]["batch"] == batch
    assert card["steps"] + sum(run["steps"] for run in card.get("before", ())) >= steps
    assert {CARD, "README.md", "loss.csv", "model_index.json"} <= {path.name for path in folder.iterdir()}


@BY_NAME
def test_diffusers_can_load_it(prior, splits, batch, steps):
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(str(FOLDERS / prior.source))
    x = torch.randn((1, 1, 128, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = pipeline.unet.float()(torch.nn.functional.pixel_unshuffle(x, 4), 500).sample
        ours = prior.load().network(x, 500)
    assert torch.allclose(torch.nn.functional.pixel_shuffle(theirs, 4), ours, atol=1e-5)


@pytest.fixture(scope="module")
def particles() -> tuple[torch.Tensor, torch.Tensor]:
    """Particles of the held-out structures with noise of their own, and the clean images, [B, 1, 128, 128] each."""
    stack = Simulate(HELD_OUT, snr=2.0, seed=7).open()
    scalings = [minmax(stack.read(i), "") for i in range(IMAGES)]
    x = np.stack([scaling.apply(stack.read(i)) for i, scaling in enumerate(scalings)])
    clean = np.stack([scaling.apply(stack.clean(i)) for i, scaling in enumerate(scalings)])
    return torch.from_numpy(x).unsqueeze(1), torch.from_numpy(clean).unsqueeze(1)


def exactly_measured(recipe: OperatorRecipe, x: torch.Tensor) -> Problem:
    operator = build_operator(recipe, (128, 128), seed=0, dtype=torch.float32, device=torch.device("cpu"))
    return Problem(operator, operator.A(x), NoNoise(), torch.zeros(len(x), 1, 1, 1))


def rng() -> Rng:
    return Rng(0, [str(i) for i in range(IMAGES)])


def test_the_noise_of_held_out_particles_is_estimated_from_a_quarter_of_the_measurements(particles):
    x, clean = particles
    model = Hqs().model(exactly_measured(SumPool(8, 16), x), rng())
    assert isinstance(model, NoisyImages)
    true = (x - clean).std((1, 2, 3))
    assert torch.allclose(model.noise.flatten(), true, rtol=0.15), (model.noise.flatten(), true)


@pytest.mark.parametrize(("recipe", "gain"), [(SumPool(16, 64), 0.5), (Fourier(0.25), 2.0)], ids=["pool", "fourier"])
def test_hqs_recovers_held_out_particles_far_above_the_floor(particles, recipe, gain):
    """Also if the measurements do not determine the mean over pixels, as with `fourier:0.25`."""
    problem = exactly_measured(recipe, particles[0])
    found, floor = (decibels(solver.solve(problem, rng=rng()).x, particles[0]) for solver in (Hqs(), Pinv()))
    print(f"\n{recipe}: hqs {found:.2f}, pinv {floor:.2f} dB")
    assert found > floor + gain
