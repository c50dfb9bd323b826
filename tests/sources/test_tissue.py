"""Synthetic tissue: correlations between sections, independence, and views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryobench.errors import ParameterError, SelectionError
from cryobench.sources import tissue
from cryobench.sources.tissue import Tissue
from cryobench.sources.volume import Volume

SMALL = {"depth": 12, "size": 20}


def correlation(volume: np.ndarray, axis: int, lag: int) -> float:
    """The mean correlation of sections that are `lag` apart."""
    sections = np.moveaxis(volume, axis, 0).reshape(volume.shape[axis], -1)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(sections[:-lag], sections[lag:], strict=True)]))


@pytest.mark.slow
def test_neighbouring_sections_correlate_as_stated_along_every_axis():
    volumes = [Tissue(seed, depth=80, size=80).open().read(0) for seed in range(4)]
    for lag, stated in ((1, 0.95), (2, 0.90), (4, 0.75), (8, 0.53)):
        found = [[correlation(volume, axis, lag) for volume in volumes] for axis in range(3)]
        assert np.mean(found) == pytest.approx(stated, abs=0.05)
        # equal along all axes, but for the scatter of four volumes
        assert np.ptp(np.mean(found, axis=1)) < 0.1


def test_a_volume_depends_on_seed_number_and_size_alone():
    one, three, other = (Tissue(*given, **SMALL).open() for given in ((5, 1), (5, 3), (6, 1)))
    assert np.array_equal(one.read(0), three.read(0))
    assert len(three) == 3
    for different in (three.read(1), three.read(2), other.read(0)):
        assert abs(np.corrcoef(one.read(0).ravel(), different.ravel())[0, 1]) < 0.5
    values = three.read(2)
    assert values.dtype == np.float32
    assert 0 <= values.min() < values.max() <= 1


def test_sections_and_reslices_are_those_of_the_volumes():
    volumes, sections, reslices = (Tissue(2, 2, **SMALL, view=v).open() for v in ("volumes", "sections", "reslices"))
    assert [stack.shape for stack in (volumes, sections, reslices)] == [(12, 20, 20), (20, 20), (12, 20)]
    assert [len(stack) for stack in (volumes, sections, reslices)] == [2, 24, 40]
    assert np.array_equal(sections.read(15), volumes.read(1)[3])
    assert np.array_equal(reslices.read(27), volumes.read(1)[:, 7])
    assert volumes.pixel_size(0) == 100.0


def test_noise_has_unit_deviation_and_the_stated_length():
    noise = tissue.smooth_noise((40, 40, 40), 1.5, ("test",))
    assert noise.std() == pytest.approx(1, abs=0.05)
    # the autocorrelation of white noise smoothed by a Gaussian of deviation s is exp(-d^2 / (4 s^2))
    assert correlation(noise, 0, 2) == pytest.approx(np.exp(-4 / 9), abs=0.05)


def test_filaments_are_isotropic_and_uniform():
    box = np.array([40, 40, 40])
    g = np.random.default_rng(0)
    points = tissue._lines(lambda purpose, count, columns: g.random((1000 * count, columns)), box)
    counts, _ = np.histogramdd(points, bins=4, range=[(0, 40)] * 3)
    assert counts.std() / counts.mean() < 0.2
    faces = [np.mean(points[:, axis] < 10) for axis in range(3)]
    assert np.ptp(faces) < 0.03


def test_a_file_is_read_as_volumes_sections_or_reslices(tmp_path):
    values = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    np.save(tmp_path / "v.npy", values)
    for view, planes in (("sections", values.reshape(6, 4, 5)), ("reslices", values.swapaxes(1, 2).reshape(8, 3, 5))):
        stack = Volume((f"{tmp_path}/v.npy",), view=view).open()
        assert stack.shape == planes.shape[1:]
        assert np.array_equal(stack.read_block(range(len(stack))), planes)
        assert stack.files([0, 1]) == [tmp_path / "v.npy"]
        with pytest.raises(SelectionError, match="does not exist"):
            stack.read(len(planes))


FIBSEM = Path(__file__).parents[2].parent / "shared" / "data" / "fibsem_test_96x128x128.npy"


@pytest.mark.skipif(not FIBSEM.exists(), reason="the folder of shared data is absent")
def test_real_sections_correlate_alike():
    """What `tissue` is tuned to: a real volume is within 0.09 of the stated correlations."""
    real = Volume((str(FIBSEM),)).open().read(0)
    for lag, stated in ((1, 0.95), (2, 0.90), (4, 0.75), (8, 0.53)):
        assert np.mean([correlation(real, axis, lag) for axis in range(3)]) == pytest.approx(stated, abs=0.09)


@pytest.mark.parametrize(("given", "message"), [
    ({"count": 0}, "tissue: count must be at least 1, got 0"),
    ({"depth": 4}, "tissue: depth must be at least 8, got 4"),
    ({"seed": 2**70}, "tissue: seed must fit in 64 bits"),
    ({"size": 10**6}, "tissue needs .* of memory"),
])  # fmt: skip
def test_parameters_are_checked(given, message):
    with pytest.raises(ParameterError, match=message):
        Tissue(**given)
