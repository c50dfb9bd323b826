"""The published protocol against its closed form, skimage, and what it cannot show."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from cases import case_of
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cryobench.core import Case, Reconstruction, Scale
from cryobench.metrics.p95 import P95

ELECTRONS = 60.0


def halves() -> Case:
    """Two halves of 60 electrons per pixel and no specimen, with 1 at the 95th percentile of the first."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.poisson(torch.full((1, 1, 256, 256), ELECTRONS).double(), generator=draw) for _ in range(2))
    top = torch.quantile(a, 0.95)
    case = dataclasses.replace(case_of(a / top), other=b / top)
    scale = Scale(torch.zeros(1).double(), top.reshape(1), None, "p95")
    return dataclasses.replace(case, problem=dataclasses.replace(case.problem, scale=scale))


def scores(case: Case, x: torch.Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in P95().measure(case, Reconstruction(x)).values.items()}


def test_the_numbers_are_those_of_skimage_on_clipped_images():
    case = halves()
    x = 0.9 * case.truth + 0.05
    found = scores(case, x)
    answer, a, b = (image[0, 0].clamp(0, 1).numpy() for image in (x, case.truth, case.other))
    for name, image in (("other", b), ("raw", a)):
        assert found[f"p95_psnr_{name}"] == pytest.approx(peak_signal_noise_ratio(image, answer, data_range=1))
        assert found[f"p95_ssim_{name}"] == pytest.approx(structural_similarity(image, answer, data_range=1), abs=1e-3)


def test_the_number_depends_on_the_dose_alone_and_a_perfect_answer_gains_at_most_3_dB():
    """A perfect answer has about 20 log10(sqrt N + 1.645) dB against a half of N electrons per pixel; clipping at the
    95th percentile removes some of the noise."""
    case = halves()
    perfect = scores(case, torch.full_like(case.truth, ELECTRONS / float(case.problem.scale.factor)))
    raw = scores(case, case.truth)
    closed_form = 20 * math.log10(math.sqrt(ELECTRONS) + 1.645)
    assert closed_form < perfect["p95_psnr_other"] < closed_form + 0.5
    assert 2.8 < perfect["p95_psnr_other"] - raw["p95_psnr_other"] < 10 * math.log10(2)
    assert math.isinf(raw["p95_psnr_raw"])


def test_without_the_scaling_or_the_other_half_the_reason_is_given():
    case = halves()
    scale = dataclasses.replace(case.problem.scale, name="meanstd")
    other = dataclasses.replace(case, problem=dataclasses.replace(case.problem, scale=scale))
    found = P95().measure(other, Reconstruction(case.truth))
    assert all("--protocol p95" in reason for reason in found.unmeasured.values())
    alone = P95().measure(dataclasses.replace(case, other=None), Reconstruction(case.truth))
    assert set(alone.unmeasured) == {"p95_psnr_other", "p95_ssim_other"}
    assert alone.values["p95_ssim_raw"] == pytest.approx(1)
