"""Sums over the halves of particles: against `ctf@project` of each half, however the particles come."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from optics import ctf_table

from cryobench.core import Imaging, build_operator
from cryobench.errors import DataError
from cryobench.maps import half_maps
from cryobench.maps.half_maps import TOLERANCE, HalfKernels, HalfMaps, halves_of
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.project import Project
from cryobench.physics.ctf import CtfParameters
from cryobench.physics.poses import Poses

D, N, PIXEL = 8, 11, 3.0
HALVES = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0])


def poses() -> Poses:
    generator = torch.Generator().manual_seed(1)
    return Poses(Poses.uniform(N, 0).angles, torch.randn((N, 2), generator=generator, dtype=torch.float64) * 4)


def images() -> torch.Tensor:
    return torch.randn((N, D, D), generator=torch.Generator().manual_seed(0))


def wanted(with_ctf: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A^T y of each half and A^T A of a volume, by the operators that a command line would name."""
    volume = torch.randn((1, 1, D, D, D), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sums, normals = [], []
    for half in (0, 1):
        rows = (half == HALVES).nonzero()[:, 0]
        table = poses().to_table().join(ctf_table(N)).iloc[rows.tolist()].reset_index(drop=True)
        recipe = Composed(Ctf(), Project()) if with_ctf else Project()
        operator = build_operator(recipe, Imaging((D, D, D), (PIXEL,), table), seed=0, dtype=torch.float64)
        sums.append(operator.A_adjoint(images()[rows].double()[None])[0, 0])
        normals.append(operator.A_adjoint(operator.A(volume))[0, 0])
    return torch.stack(sums), torch.stack(normals)


def convolved(kernels: torch.Tensor) -> torch.Tensor:
    """Each kernel with the volume of `wanted`, by circular convolution of twice the sides."""
    volume = torch.randn((1, 1, D, D, D), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    padded = torch.fft.fftn(volume[0, 0], s=(2 * D,) * 3)
    return torch.fft.ifftn(torch.fft.fftn(kernels, dim=(1, 2, 3)) * padded, dim=(1, 2, 3)).real[:, :D, :D, :D]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.float64, 1e-11)])
@pytest.mark.parametrize("with_ctf", [True, False])
@pytest.mark.parametrize("length", [2, 4, 100])
def test_sums_are_those_of_the_operator_of_each_half(length, with_ctf, dtype, tolerance, monkeypatch):
    """In whatever portions the particles come, and in whatever batches they are transformed."""
    monkeypatch.setattr(half_maps, "batch_of", lambda side: length)
    ctf = CtfParameters.from_table(ctf_table(N)) if with_ctf else None
    maps = HalfMaps(D, PIXEL, dtype=dtype)
    for part in (slice(0, 3), slice(3, 4), slice(4, N)):
        some = Poses(poses().angles[part], poses().shift[part])
        maps.add(images()[part], some, ctf and ctf.select(part), HALVES[part])
    sums, normals = wanted(with_ctf)
    for found, exact in ((maps.sums, sums), (convolved(maps.kernels), normals)):
        assert (found - exact).norm() < tolerance * exact.norm()


def test_kernels_serve_several_sets_of_images_of_the_same_particles(monkeypatch):
    kernels = HalfKernels(D, PIXEL)
    kernels.add(poses(), None, HALVES)
    sets = [HalfMaps(D, PIXEL, kernels=kernels) for _ in range(2)]
    own = HalfMaps(D, PIXEL)
    own.add(images(), poses(), None, HALVES)
    assert torch.equal(own.kernels, kernels.kernels)
    monkeypatch.setattr(kernels, "add", None)  # they are not added again
    for factor, maps in enumerate(sets, start=1):
        maps.add(factor * images(), poses(), None, HALVES)
        assert maps.kernels is kernels.kernels
        torch.testing.assert_close(maps.sums, factor * own.sums)


@pytest.mark.parametrize("what", ["images", "ctf", "halves"])
def test_counts_that_differ_are_an_error(what):
    given = {"images": images(), "poses": poses(), "ctf": CtfParameters.from_table(ctf_table(N)), "halves": HALVES}
    given[what] = given[what].select(slice(3)) if what == "ctf" else given[what][:3]
    with pytest.raises(ValueError, match=r"for 11 (poses|particles)"):
        HalfMaps(D, PIXEL).add(**given)


def test_halves_are_those_of_the_table_else_by_parity():
    assert halves_of(None, 5).tolist() == [0, 1, 0, 1, 0]
    assert halves_of(pd.DataFrame({"rlnDefocusU": np.ones(4)}), 4).tolist() == [0, 1, 0, 1]
    assert halves_of(pd.DataFrame({"rlnRandomSubset": [2, 2, 1, 1, 1]}), 5).tolist() == [1, 1, 0, 0, 0]
    assert halves_of(pd.DataFrame({"rlnRandomSubset": [2.0, 2.0, 1.0, 1.0]}), 4).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ([1, 3, 2, 1], "p.star: row 2 has rlnRandomSubset 3; give 1 or 2"),
        ([1, np.nan, 2, 1], "p.star: row 2 has rlnRandomSubset nan; give 1 or 2"),
        ([1, 1, 2, 1], "p.star: the halves have 3 and 1 particles; give at least 2 in each half"),
        ([1, 1, 1], "p.star: the halves have 3 and 0 particles; give at least 2 in each half"),
        (None, "p.star: the halves have 2 and 1 particles; give at least 2 in each half"),
    ],
)
def test_halves_that_make_no_maps_are_refused(subsets, message):
    table = None if subsets is None else pd.DataFrame({"rlnRandomSubset": subsets})
    with pytest.raises(DataError, match=message):
        halves_of(table, 3 if table is None else len(table), "p.star")
