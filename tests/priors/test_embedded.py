"""The packaged prior: what it was trained on, what it weighs, and what it is worth on structures it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryobench.priors.diffusion import CARD, Embedded
from cryobench.priors.model_folder import find_model
from cryobench.priors.sparsity import Sparsity
from cryobench.priors.tv import TotalVariation
from cryobench.priors.wavelet import WaveletSparsity
from cryobench.sources.scaling import between, minmax
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import catalogue

FOLDER = Path(__file__).parents[2] / "cryobench" / "priors" / "embedded"
HELD_OUT = "6zu5+6zu5-large+6zu5-small"
IMAGES = 3


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    """Noisy images [3, 1, 128, 128] of the held-out structures, as the demo has them."""
    stack = Simulate(HELD_OUT, snr=2.0, seed=7).open()
    images = [minmax(stack.read(i), "") for i in range(IMAGES)]
    return torch.from_numpy(np.stack([image for image, _, _ in images])).unsqueeze(1)


def noisy(images: torch.Tensor, sigma: float) -> torch.Tensor:
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def decibels(x: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean PSNR, data range 2."""
    return float((10 * torch.log10(4 / (x - truth).square().mean((1, 2, 3)))).mean())


def oracle(prior: Sparsity, z: torch.Tensor, truth: torch.Tensor, sigma: float) -> float:
    """The best mean PSNR of argmin 1/2 ||x - z||^2 + lam R(x) over lam, which only who holds the truth can choose."""
    lams = [sigma * factor for factor in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0)]
    weights = [torch.full((len(z), 1, 1, 1), lam) for lam in lams]
    found = [decibels(prior.prox(z, weight), truth) for weight in weights]
    assert max(found) not in (found[0], found[-1]), "the best lam lies at the end of the range"
    return max(found)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0])
def test_it_denoises_held_out_particles_better_than_tv_and_wavelets_with_the_best_lam(held_out, sigma):
    z = noisy(held_out, sigma)
    with torch.no_grad():
        ours = decibels(Embedded().load().denoise(z, sigma), held_out)
    theirs = max(oracle(prior, z, held_out, sigma) for prior in (TotalVariation(), WaveletSparsity()))
    assert ours > theirs + (1.0 if sigma == 0.3 else 0.0), (ours, theirs)


def test_it_has_not_seen_the_structures_of_the_test_split():
    trained = {name for origin in Embedded().trained_on() for name in origin["structure"].split(",")}
    entries = catalogue()
    assert trained
    assert {entries[name]["split"] for name in trained} == {"train"}
    seen = {entries[name]["pdb"] for name in trained}
    assert not seen & {entry["pdb"] for entry in entries.values() if entry["split"] != "train"}


def test_it_is_small_whole_and_says_what_it_is():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 20 * 2**20
    card = find_model(str(FOLDER)).card
    assert card["image_shape"] == [128, 128]
    assert card["settings"]["batch"] == 16
    assert {CARD, "README.md", "loss.csv", "model_index.json"} <= {path.name for path in FOLDER.iterdir()}


def test_others_can_load_it():
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(FOLDER)
    x = torch.randn((1, 1, 128, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = pipeline.unet.float()(torch.nn.functional.pixel_unshuffle(x, 4), 500).sample
        ours = Embedded().load().network(x, 500)
    assert torch.allclose(torch.nn.functional.pixel_shuffle(theirs, 4), ours, atol=1e-5)


def test_its_estimate_is_of_the_clean_image_where_noise_hides_the_rest():
    """At sigma 1 an image's own noise cannot be told from what was added: the estimate is nearer to the clean one."""
    stack = Simulate(HELD_OUT, snr=2.0, seed=7).open()
    image, low, high = minmax(stack.read(0), "")
    clean = torch.from_numpy(between(low, high).apply(stack.clean(0)))[None, None]
    measured = torch.from_numpy(image)[None, None]
    with torch.no_grad():
        found = Embedded().load().denoise(noisy(measured, 1.0), 1.0)
    assert decibels(found, clean) > decibels(found, measured) + 1
