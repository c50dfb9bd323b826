"""The metric `heterogeneity` on answers of known quality, its parts against brute force, and the ceiling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

import cryobench as cb
from cryobench.core import Imaging, MeasuredTogether, Reconstruction, Structure
from cryobench.core.heterogeneity import Heterogeneity, VolumeModel
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.maps.heterogeneity import HeterogeneityMetric
from cryobench.maps.latents import agreement, clusters, hit_rate, rank_correlation
from cryobench.maps.particles import particles_of
from cryobench.maps.true_labels import MapsAtPlaces, true_label_maps
from cryobench.physics.poses import Poses
from cryobench.sources.heterogeneous import Heterogeneous, HeterogeneousStack

SIDE = 24
SMALL = "structure=3mht,size=24,snr=1"
MIXTURE = f'heterogeneous:mixture,{SMALL},count=40,parts="A,C,D;A"'


def opened(kind: str, **parameters: object) -> HeterogeneousStack:
    given = {"structure": "3mht", "size": SIDE, "count": 40, "snr": None} | parameters
    given |= {"parts": "A,C,D;A"} if kind == "mixture" else {"moving": "C,D"}
    return Heterogeneous(kind, **given).open()


class Known(VolumeModel):
    """The true map of each particle, whose latent is its number, in a frame and with an error."""

    side, dimensions = SIDE, 1

    def __init__(self, stack: HeterogeneousStack, change=lambda volume: volume):
        self._stack, self._change = stack, change

    def volumes(self, latents: torch.Tensor) -> torch.Tensor:
        found = [self._stack.volume(int(number)) for number in latents[:, 0]]
        return torch.stack([self._change(torch.from_numpy(volume * np.float32(size))) for volume, size in found])

    def arrays(self) -> dict[str, torch.Tensor]:
        return {}


def measured(stack: HeterogeneousStack, answer: Heterogeneity | None, sample: int = 6) -> MeasuredTogether:
    n = len(stack)
    imaging = Imaging(stack.shape, tuple(stack.pixel_size(i) for i in range(n)), stack.table)
    of = Structure(None, stack.particle_radius(0), lambda place: torch.from_numpy(stack.volume(place)[0]))
    gathering = HeterogeneityMetric(sample).gather(imaging, of)
    images = torch.zeros(n, 1, SIDE, SIDE)
    gathering.add(images, Reconstruction(images, heterogeneity=answer))
    return gathering.measure()


def numbered(stack: HeterogeneousStack, **parts: object) -> Heterogeneity:
    latents = torch.arange(len(stack), dtype=torch.float64)[:, None]
    return replace(Heterogeneity(latents, Known(stack)), **parts)


def test_the_true_maps_have_a_correlation_of_one_and_wrong_ones_less():
    stack = opened("mixture")
    exact = measured(stack, numbered(stack))
    assert exact.values["het_fsc"] == pytest.approx(1, abs=1e-5)
    assert exact.values["het_fsc_masked"] == pytest.approx(1, abs=1e-5)
    assert exact.curves["het_fsc"].shape == (SIDE // 2,)
    assert exact.curves["het_fsc_of_particles"].shape == (6,)
    assert exact.unmeasured["pose_degrees"] == "the poses were given"
    flipped = measured(stack, numbered(stack, model=Known(stack, lambda volume: volume.flip(0))))
    assert flipped.values["het_fsc"] < 0.6


@pytest.mark.parametrize("mirrored", [False, True])
def test_sought_poses_are_aligned_before_maps_are_compared(mirrored):
    """Maps and poses in another frame; 30% of the poses are wrong, the others off by 2 degrees."""
    stack = opened("motion", count=60, pixel_size=6.0, b_factor=1000.0)
    rng, n = np.random.default_rng(0), 60
    Q = Rotation.random(random_state=1).as_matrix()
    A = Poses.from_table(stack.table).matrices.numpy()
    noise = Rotation.from_rotvec(rng.normal(size=(n, 3)) * 2 / np.sqrt(3), degrees=True).as_matrix()
    found = noise @ A @ Q
    if mirrored:
        found = np.diag([-1.0, -1.0, 1.0]) @ found
    bad = rng.random(n) < 0.3
    found[bad] = Rotation.random(int(bad.sum()), random_state=2).as_matrix()

    def turned(volume: torch.Tensor) -> torch.Tensor:
        """v(h Q r) by brute force: the sum over the Fourier coefficients of the map."""
        k = np.fft.fftfreq(SIDE)
        spectrum = np.fft.fftn(np.fft.ifftshift(volume.numpy()))
        r = np.arange(SIDE) - SIDE // 2
        z, y, x = np.meshgrid(r, r, r, indexing="ij")
        h = -1 if mirrored else 1
        where = h * np.stack([x, y, z], -1).reshape(-1, 3) @ Q.T
        ex, ey, ez = (np.exp(2j * np.pi * np.outer(axis, k)) for axis in where.T)
        along = np.einsum("zyx,px->zyp", spectrum, ex)
        value = np.einsum("zyp,py,pz->p", along, ey, ez).real / SIDE**3
        return torch.from_numpy(value.reshape((SIDE,) * 3))

    shift = Poses.from_table(stack.table).shift
    answer = numbered(stack, model=Known(stack, turned), rotations=torch.from_numpy(found), shift=shift)
    result = measured(stack, answer, sample=2)
    assert result.values["het_fsc"] > 0.97
    assert 1 < result.values["pose_degrees"] < 4
    assert result.values["pose_pixels"] < 0.3
    unaligned = measured(stack, replace(answer, rotations=None, shift=None), sample=2)
    assert unaligned.values["het_fsc"] < 0.8


@pytest.mark.parametrize(("count", "own"), [(60, True), (30, False)])
def test_each_class_of_enough_particles_has_its_own_frame(count, own):
    """Maps of two classes, one of which is turned by a quarter turn about z with its poses."""
    stack = opened("mixture", count=count, pixel_size=6.0, b_factor=1000.0)
    classes = torch.tensor(stack.table["trueClass"].to_numpy())
    poses = Poses.from_table(stack.table)
    Q = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    rotations = torch.where((classes == 2)[:, None, None], poses.matrices @ Q, poses.matrices)

    class Turned(Known):
        def volumes(self, latents: torch.Tensor) -> torch.Tensor:
            turned = []
            for number, volume in zip(latents[:, 0].long(), super().volumes(latents), strict=True):
                about = volume[:, 1:, 1:].rot90(1, (1, 2))  # about the voxel at the origin
                quarter = torch.zeros_like(volume)
                quarter[:, 1:, 1:] = about
                turned.append(quarter if classes[number] == 2 else volume)
            return torch.stack(turned)

    answer = numbered(stack, model=Turned(stack), rotations=rotations, shift=poses.shift)
    result = measured(stack, answer)
    assert np.bincount(classes)[1:].min() >= 20 if own else np.bincount(classes)[1:].min() < 20
    assert (result.values["het_fsc"] > 0.97) == own
    if own:
        assert result.values["pose_degrees"] < 1e-3


def test_latents_are_compared_with_classes():
    stack = opened("mixture")
    classes = stack.table["trueClass"].to_numpy()
    rng = np.random.default_rng(0)
    latents = torch.from_numpy(rng.normal(size=(40, 3)) * 0.1 + classes[:, None] * [5, -3, 0])
    exact = measured(stack, numbered(stack, latents=latents, model=_one_map(3)))
    assert [exact.values[name] for name in ("het_ari", "het_ami", "het_hits")] == [1, pytest.approx(1), 1]
    assert "trueLatent" in exact.unmeasured["het_rank"]
    chance = measured(stack, numbered(stack, latents=torch.from_numpy(rng.normal(size=(40, 3))), model=_one_map(3)))
    assert abs(chance.values["het_ari"]) < 0.2
    assert chance.values["het_hits"] == pytest.approx(0.5, abs=0.12)


def _one_map(dimensions: int) -> VolumeModel:
    return MapsAtPlaces(torch.rand(1, SIDE, SIDE, SIDE), torch.zeros(1, dimensions, dtype=torch.float64), 0.0)


def test_one_map_for_all_has_no_latents():
    stack = opened("mixture")
    found = measured(stack, Heterogeneity(torch.zeros(40, 0), _one_map(0)))
    assert np.isfinite(found.values["het_fsc"])
    for name in ("het_ari", "het_ami", "het_rank", "het_hits"):
        assert found.unmeasured[name] == "one map for all particles has no latents"


def test_what_is_missing_is_stated():
    stack = opened("mixture")
    nothing = measured(stack, None)
    assert set(nothing.unmeasured) == set(nothing.values)
    assert "no map for each particle" in nothing.unmeasured["het_fsc"]
    bare = Imaging(stack.shape, tuple(stack.pixel_size(i) for i in range(40)))
    gathering = HeterogeneityMetric().gather(bare, Structure())
    answer = numbered(stack, latents=torch.rand(40, 2), model=_one_map(2))
    gathering.add(torch.zeros(40, 1, SIDE, SIDE), Reconstruction(torch.zeros(1), heterogeneity=answer))
    found = gathering.measure()
    assert set(found.unmeasured) == set(found.values)
    assert found.unmeasured["het_fsc"] == "the true maps of the particles are not known"
    lost = measured(stack, numbered(stack, latents=torch.full((40, 1), torch.nan), model=_one_map(1)))
    assert lost.unmeasured["het_ari"] == "some latents are not finite"
    with pytest.raises(ParameterError, match="sample must be at least 1"):
        HeterogeneityMetric(0)


def test_the_rank_correlation_is_that_of_scipy_on_principal_components():
    rng = np.random.default_rng(0)
    truth = rng.random((300, 2))
    mixed = np.stack([3 * truth[:, 0], np.exp(truth[:, 1])], axis=1) @ Rotation.random(random_state=0).as_matrix()[:2]
    assert rank_correlation(mixed, truth) > 0.9
    noisy = mixed + 0.3 * rng.normal(size=mixed.shape)
    components = (noisy - noisy.mean(0)) @ np.linalg.svd(noisy - noisy.mean(0), full_matrices=False)[2].T
    wanted = np.mean([max(abs(spearmanr(c, t).statistic) for c in components.T) for t in truth.T])
    assert rank_correlation(noisy, truth) == pytest.approx(wanted)
    assert rank_correlation(np.zeros((300, 2)), truth) == 0


def test_hits_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    latents, truth = rng.normal(size=(120, 2)), rng.random((120, 1))
    hits = []
    for i in range(120):
        order = [j for j in np.argsort(((latents - latents[i]) ** 2).sum(1)) if j != i][:10]
        near = [j for j in np.argsort(np.abs(truth - truth[i])[:, 0]) if j != i][:12]
        hits.append(np.mean([j in near for j in order]))
    assert hit_rate(latents, truth=truth) == pytest.approx(np.mean(hits))
    assert hit_rate(truth, truth=truth) == 1
    assert hit_rate(np.zeros((50, 1)), classes=np.arange(50) % 2) == pytest.approx(0.5, abs=0.2)


def test_clusters_do_not_depend_on_their_numbers():
    rng = np.random.default_rng(0)
    classes = np.repeat([3, 1, 2], 30)
    found = clusters(rng.normal(size=(90, 2)) * 0.1 + classes[:, None] * [1.0, -2.0], 3)
    assert agreement(found, classes) == (1.0, pytest.approx(1))


@pytest.mark.parametrize("kind", ["motion", "mixture"])
def test_maps_by_true_labels_are_near_the_true_ones(kind):
    """Without noise, 240 particles: each map correlates with that of its particle, better than the mean of all."""
    stack = opened(kind, count=240, ctf=False)
    imaging = Imaging(stack.shape, tuple(stack.pixel_size(i) for i in range(240)), stack.table, through_ctf=False)
    images = torch.from_numpy(stack.read_block(range(240)))
    answer = true_label_maps(images, particles_of(imaging, "test"), imaging, radius=stack.particle_radius(0),
                             true=lambda i: torch.from_numpy(stack.volume(i)[0]) * stack.pixel_size(0))  # fmt: skip
    found = measured(stack, answer, sample=12)
    one = MapsAtPlaces(answer.model.volumes(answer.latents).mean(0, keepdim=True), torch.zeros(1, 0), 0.0)
    consensus = measured(stack, Heterogeneity(torch.zeros(240, 0), one), sample=12)
    assert found.values["het_fsc_masked"] > 0.9
    assert found.values["het_fsc_masked"] > consensus.values["het_fsc_masked"] + 0.02
    assert found.values["het_hits"] == 1


def test_labels_that_make_no_maps_are_refused():
    stack = opened("mixture")
    images = torch.from_numpy(stack.read_block(range(40)))
    imaging = Imaging(stack.shape, tuple(stack.pixel_size(i) for i in range(40)), stack.table)
    particles = particles_of(imaging, "test")
    table = stack.table.drop(columns="trueClass")
    with pytest.raises(IncompatibleError, match="structures of the particles are not known"):
        true_label_maps(images, particles, replace(imaging, table=table))
    rare = pd.Series([1] * 38 + [2] * 2)
    with pytest.raises(IncompatibleError, match="class 2 has fewer than 4"):
        true_label_maps(images, particles, replace(imaging, table=table.assign(trueClass=rare)))


def test_the_ceiling_of_a_run_has_the_maps_of_the_true_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = cb.run(
        "pinv", "identity", data=MIXTURE, metrics=["psnr", "heterogeneity:sample=4"], images="0:40", ceiling=True
    )
    by_kind = {record.ceiling: record for record in records}
    top, other = by_kind[True], by_kind[False]
    assert (top.status, top.reason) == ("ok", "")
    assert top.together["het_ari"] == 1
    assert top.together["het_fsc"] > 0.2
    assert "no map for each particle" in other.unmeasured["het_fsc"]
