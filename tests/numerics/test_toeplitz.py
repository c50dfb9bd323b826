"""Transforms of padded cubes against plain ones, products with Toeplitz matrices against direct sums, and non-uniform
transforms against direct sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryobench.numerics.fft import cropped_irfftn, irfftn, padded_rfftn, rfftn
from cryobench.numerics.nufft import Points
from cryobench.numerics.toeplitz import Toeplitz


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("gradient", [False, True])  # torch computes where a gradient is needed, scipy elsewhere
@pytest.mark.parametrize(("shape", "padded"), [((3, 4, 5), (6, 9, 10)), ((4, 5), (8, 7)), ((6, 6, 6), (6, 6, 6))])
def test_padding_and_cropping_are_those_of_whole_transforms(shape, padded, gradient):
    x = draw(2, 1, *shape).requires_grad_(gradient)
    before = torch.nn.functional.pad(x, [k for n, m in zip(shape[::-1], padded[::-1], strict=True) for k in (0, m - n)])
    spectrum = padded_rfftn(x, padded)
    torch.testing.assert_close(spectrum, rfftn(before, len(shape)))
    whole = irfftn(spectrum * spectrum, padded)
    kept = whole[(..., *[slice(n) for n in shape])]
    torch.testing.assert_close(cropped_irfftn(spectrum * spectrum, padded, shape), kept)


@pytest.mark.parametrize("n", [3, 4])
def test_a_toeplitz_product_is_the_sum_over_differences(n):
    rng = np.random.default_rng(0)
    kernel = np.zeros((2 * n,) * 3)
    kernel[n] = 7.0  # a difference that does not occur
    for d in np.ndindex(*(2 * n - 1,) * 3):
        offset = np.array(d) - (n - 1)
        if kernel[tuple(offset)] == 0:
            kernel[tuple(offset)] = kernel[tuple(-offset)] = rng.standard_normal()
    x = draw(2, 1, n, n, n)
    voxels = list(np.ndindex(n, n, n))
    matrix = torch.tensor([[kernel[tuple(np.subtract(r, s))] for s in voxels] for r in voxels])
    wanted = (x.flatten(1) @ matrix.T).reshape(x.shape)
    product = Toeplitz(torch.from_numpy(kernel), dtype=torch.float64, device=torch.device("cpu"))
    torch.testing.assert_close(product(x), wanted)
    torch.testing.assert_close(product(x[1:]), product(x)[1:], rtol=0, atol=0)


@pytest.mark.parametrize(("n", "eps", "small"), [(7, 1e-7, False), (8, 1e-12, False), (8, 1e-7, True)])
def test_non_uniform_transforms_are_sums_and_each_others_adjoint(n, eps, small):
    rng = np.random.default_rng(1)
    p, x = rng.uniform(-np.pi, np.pi, (30, 3)), rng.standard_normal((n, n, n))
    values = rng.standard_normal(30) + 1j * rng.standard_normal(30)
    r = np.arange(n) - n // 2
    wave = [np.exp(-1j * np.outer(axis, r)) for axis in p.T]
    points = Points(p, n, eps, small=small)
    found, back = points.to(x), points.back(values)
    wanted = np.einsum("zyx,pz,py,px->p", x, *wave, optimize=True)
    assert np.linalg.norm(found - wanted) < 2 * eps * np.linalg.norm(wanted)
    wanted = np.einsum("p,pz,py,px->zyx", values, *(w.conj() for w in wave), optimize=True)
    assert np.linalg.norm(back - wanted) < 2 * eps * np.linalg.norm(wanted)
    assert abs(np.vdot(found, values) - np.vdot(x, back)) < 1e-14 * np.linalg.norm(found) * np.linalg.norm(values)
