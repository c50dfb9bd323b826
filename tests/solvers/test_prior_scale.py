"""Solvers with a diffusion prior on images of any scale: the same answer, to a tenth of a decibel, as on [-1, 1]."""

from __future__ import annotations

import pytest
import torch
from optics import live, taken

from cryobench.core import Problem, recording
from cryobench.core.recording import recording as recorded
from cryobench.core.scale import MINMAX, Scale
from cryobench.numerics.linalg import per_item
from cryobench.operators.noise import Gaussian, NoNoise
from cryobench.operators.sumpool import SumPool
from cryobench.plan.dataset import load, source_spec
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.solvers.pinv import minimum_norm
from cryobench.solvers.prior_scale import PriorScale, by_moments, image_variance, median_maximum

IDS = [str(i) for i in range(12)]


def test_the_median_maximum_equals_that_of_random_draws():
    mean = torch.linspace(-1, 1, 200, dtype=torch.float64).reshape(1, 1, 10, 20)
    draws = mean + 0.4 * torch.randn((4000, 1, 10, 20), generator=torch.manual_seed(0), dtype=torch.float64)
    wanted = float(draws.flatten(1).amax(dim=1).median())
    found = median_maximum(mean.repeat(2, 1, 1, 1), torch.tensor([0.4, 0.0]))
    assert found.flatten().tolist() == pytest.approx([wanted, 1.0], abs=0.02)


@pytest.mark.parametrize("noise", [NoNoise(), Gaussian(rel=0.5)])
def test_the_variance_of_white_images_is_estimated_from_measurements(noise):
    x = 5 + 3 * torch.randn((12, 1, 32, 32), generator=torch.manual_seed(1), dtype=torch.float64)
    operator = live(SumPool(4, 4), taken(12, (32, 32)))
    noisy = noise.apply(operator.A(x), operator, MINMAX, Rng(0, IDS))
    problem = Problem(operator, noisy.y, noise, noisy.sigma, Scale(MINMAX.offset, MINMAX.factor))
    least = minimum_norm(problem)
    found = image_variance(problem, least - least.mean(dim=(1, 2, 3), keepdim=True), Rng(0, IDS))
    assert float(found.mean()) == pytest.approx(9.0, rel=0.1)
    scale = by_moments(problem, -0.2, 0.2, Rng(0, IDS))
    mapped = per_item(scale.factor, x) * x + scale.offset
    assert mapped.mean(dim=(1, 2, 3)).tolist() == pytest.approx([-0.2] * 12, abs=0.1)
    assert mapped.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.2] * 12, rel=0.25)


def test_a_mapped_problem_is_that_of_the_mapped_images_and_is_mapped_back():
    x = torch.randn((3, 1, 16, 16), generator=torch.manual_seed(1), dtype=torch.float64)
    operator = live(SumPool(4, 4), taken(3, (16, 16)))
    numbers = torch.tensor([[0.5, 2.0, 3.0], [1.0, -1.0, 0.2]], dtype=torch.float64).reshape(2, 3, 1, 1, 1)
    scale = PriorScale(*numbers, torch.tensor([True, True, False]).reshape(3, 1, 1, 1))
    sigma = torch.ones((3, 1, 1, 1), dtype=torch.float64)
    problem = scale.problem(Problem(operator, operator.A(x), NoNoise(), sigma, Scale(MINMAX.offset, MINMAX.factor)))
    mapped = scale.factor * x + scale.offset
    torch.testing.assert_close(problem.y, operator.A(mapped))
    torch.testing.assert_close(problem.sigma, scale.factor)
    assert problem.scale is MINMAX
    back = scale.undo(mapped)
    torch.testing.assert_close(back[:2], x[:2])
    torch.testing.assert_close(back[2], x[2] - x[2].mean())  # its mean is not measured


def test_frames_are_recorded_on_the_scale_of_the_problem():
    with recorded() as kept, recording.mapped(lambda x: 2 * x + 1):
        recording.offer(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert [float(pair.mean()) for pair in kept.frames[0]] == [1.0, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "noise"), [("sumpool:16", "none"), ("sumpool:4", "gaussian:rel=0.1")])
def test_hqs_is_as_good_on_relion_normalised_measurements(operator, noise):
    """Scored in the units of the file, with one range: that of each image there."""
    registry, psnr = installed(), {}
    for scaling in ("minmax", "relion"):
        data = load(source_spec("demo", {}, registry), "0:2", registry, scaling)
        pixels = data.read(slice(None)).pixels
        live_operator = live(registry.make("operators", operator), data.imaging, dtype=torch.float32)
        model = registry.make("noises", noise)
        noisy = model.apply(live_operator.A(pixels), live_operator, data.scale, Rng(0, data.ids))
        problem = Problem(live_operator, noisy.y, model, noisy.sigma, data.scale)
        found = registry.make("solvers", "hqs").solve(problem, rng=Rng(0, data.ids))
        image, truth = data.scale.to_file(found.x).flatten(1), data.scale.to_file(pixels).flatten(1)
        peak = truth.amax(dim=1) - truth.amin(dim=1)
        psnr[scaling] = 10 * torch.log10(peak.square() / (image - truth).square().mean(dim=1))
    assert psnr["relion"].tolist() == pytest.approx(psnr["minmax"].tolist(), abs=0.1)
