"""Runs on images that come in two halves: protocols, halves averaged, and what solvers may see."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cryobench import run
from cryobench.cli.running import ranked_by
from cryobench.errors import DataError, ParameterError
from cryobench.leaderboard.leakage import overlap
from cryobench.plan.grid import Request, plan
from cryobench.registry import installed

SOURCE = '''
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from cryobench.core import Pairs, Prior, Reconstruction, Solver, Source, Stack
from cryobench.spec import Component

SIDE = 96


class HalvesStack(Stack):
    label, shape = "halves", (SIDE, SIDE)

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return 3

    @property
    def pairs(self):
        return HalvesPairs(self)

    def clean(self, index):
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        return (100 + 20 * np.sin(9 * x + index) * np.cos(7 * y)).astype(np.float32) if self.source.truth else None

    def _half(self, index, number):
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        clean = 100 + 20 * np.sin(9 * x + index) * np.cos(7 * y)
        clean = clean * (1 + self.source.gain_error * np.random.default_rng(99).normal(size=self.shape))
        noise = np.random.default_rng([index, number]).normal(size=self.shape)
        return (clean + (10 if number == 0 else 10 * self.source.ratio) * noise).astype(np.float32)

    def read(self, index):
        return self._half(index, 0)

    def other(self, index):
        return self._half(index, 1) if self.source.second else None


class HalvesPairs(Pairs):
    label = "halves"

    def __init__(self, stack):
        self.stack = stack

    def __len__(self):
        return 3

    def name(self, index):
        return f"m{index}"

    def shape(self, index):
        return self.stack.shape

    def read(self, index, window=None):
        return np.stack([self.stack.read(index), self.stack.other(index)])[(slice(None), *(window or ()))]

    def digests(self, index):
        return f"{index}-odd", f"{index}-even"


@dataclass(frozen=True)
class Seen(Prior):
    def trained_on(self):
        return [{"half": "1-odd"}, {"half": "1-even"}]


@dataclass(frozen=True)
class Network(Solver):
    prior: Annotated[Seen, Component("priors")] = Seen()

    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.y)


@dataclass(frozen=True)
class Halves(Source):
    ratio: float = 1.0
    gain_error: float = 0.0
    second: bool = True
    truth: bool = True

    def open(self):
        return HalvesStack(self)


@dataclass(frozen=True)
class Smooth(Solver):
    """The mean over 3 x 3 pixels."""

    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(torch.nn.functional.avg_pool2d(problem.y, 3, 1, 1, count_include_pad=False))
'''


@pytest.fixture(autouse=True)
def plugin(install_plugin):
    groups = {"cryobench.sources": {"halves": "halves_source:Halves"},
              "cryobench.solvers": {"smooth": "halves_source:Smooth", "network": "halves_source:Network"},
              "cryobench.priors": {"seen": "halves_source:Seen"}}  # fmt: skip
    return install_plugin("cryobench-halves", groups, halves_source=SOURCE)


@pytest.mark.parametrize("data", ["halves", "halves:ratio=3"])
@pytest.mark.parametrize("halves", ["first", "average"])
def test_numbers_without_a_truth_agree_with_those_against_the_clean_image(data, halves):
    floor, smooth = run("smooth", "identity", data=data, images="0:3", protocol="halves", halves=halves)
    for record in (floor, smooth):
        assert record.status == "ok", record.reason
        true = 10 ** (-np.array(record.values["psnr_clean"]) / 10)
        found, deviation = (np.array(record.values[name]) for name in ("mse_other", "mse_other_se"))
        assert (abs(found - true) < 3.5 * deviation).all()
        assert record.values["psnr_other"] == pytest.approx(-10 * np.log10(found))
        assert all(map(math.isnan, record.values["psnr"]))
        assert "no truth" in record.unmeasured["psnr"]
        assert "no truth" in record.unmeasured["ssim"]
    assert min(smooth.values["psnr_other"]) > max(floor.values["psnr_other"])


def test_the_floor_of_noise_own_is_the_input_itself_and_its_mean_error_the_noise(tmp_path):
    (floor,) = run("pinv", "identity", data="halves", images="0:3", protocol="halves", floor=False, scaling="none",
                   metrics=["mse_other", "measurement_mse"], out=tmp_path)  # fmt: skip
    assert floor.noise == "own"
    assert floor.values["measurement_mse"] == pytest.approx([0, 0, 0], abs=1e-6)
    low, high = (np.array(floor.problem["data_range"][end]) for end in ("low", "high"))
    assert floor.values["mse_other"] * (high - low) ** 2 == pytest.approx(100 * np.ones(3), rel=0.1)


def test_without_another_half_the_noise_is_that_of_the_difference_to_the_clean_image():
    both = [run("gaussian", "identity", data=f"halves:second={second}", images="0:3", protocol="halves", floor=False,
                scaling="none", metrics=["measurement_mse", "psnr"])[0] for second in ("true", "false")]  # fmt: skip
    assert [record.status for record in both] == ["ok", "ok"]
    known, clean = (np.array(record.values["psnr_clean"]) for record in both)
    assert np.abs(known - clean).max() < 0.1  # filters of nearly the same width
    assert all(map(math.isnan, both[1].values["psnr"]))


def test_averaged_halves_are_a_mean_in_a_table_of_their_own():
    (first,) = run("smooth", "identity", data="halves", images="0", protocol="halves", floor=False)
    (mean,) = run("smooth", "identity", data="halves", images="0", protocol="halves", halves="average", floor=False)
    gain = mean.values["psnr_clean"][0] - first.values["psnr_clean"][0]
    assert 1.5 < gain <= 10 * math.log10(2) + 0.3  # half the noise, the same bias
    assert first.hash != mean.hash
    assert first.problem["data_digest"] != mean.problem["data_digest"]
    assert mean.data == "halves, halves averaged"
    assert mean.resolved["halves"] == "average"


def test_the_published_protocol_has_a_table_of_its_own():
    floor, smooth = run("smooth", "identity", data="halves", images="0", protocol="p95")
    assert set(smooth.values) == {"p95_psnr_other", "p95_ssim_other", "p95_psnr_raw", "p95_ssim_raw"}
    assert smooth.data == "halves, scaling p95"
    assert 0 < smooth.values["p95_psnr_other"][0] - floor.values["p95_psnr_other"][0] < 10 * math.log10(2)
    for option in ({"metrics": ["psnr", "lpips"]}, {"scaling": "none"}):
        with pytest.raises(ParameterError, match="--protocol p95 states the"):
            run("smooth", "identity", data="halves", protocol="p95", **option)


def test_a_protocol_states_the_column_that_ranks_where_none_is_given():
    request = Request(["smooth"], ["identity"], data=["halves"], images="0", protocol="halves")
    plans = [plan(request, installed())]
    assert [ranked_by(by, plans) for by in (None, "psnr", "mse_other")] == ["psnr_other", "psnr", "mse_other"]


def test_data_without_halves_are_refused_or_skipped_with_the_reason():
    with pytest.raises(DataError, match="no second half of each image"):
        run("smooth", "identity", halves="average")
    (record,) = run("smooth", "identity", data="halves:second=false,truth=false", images="0", protocol="halves",
                    floor=False)  # fmt: skip
    assert record.status == "skipped"
    assert "the data have none" in record.reason
    (record,) = run("smooth", "identity", data="halves:second=false", images="0", metrics=["psnr_other"], floor=False)
    assert "no second image" in record.unmeasured["psnr_other"]
    with pytest.raises(ParameterError, match="--halves 'both' is unknown"):
        run("smooth", "identity", data="halves", halves="both")
    with pytest.raises(ParameterError, match="--protocol 'half' is unknown"):
        run("smooth", "identity", data="halves", protocol="half")


def test_the_digest_covers_the_other_half_and_is_unchanged_without_one(tmp_path):
    records = [run("smooth", "identity", data=data, images="0", metrics=["psnr"], floor=False)[0]
               for data in ("halves", "halves:ratio=3", "halves:second=false")]  # fmt: skip
    assert len({record.problem["data_digest"] for record in records}) == 3
    assert records[0].values == records[2].values


def test_the_command_ranks_by_the_protocol(cli):
    code, out, err = cli("run", "-s", "smooth", "-o", "identity", "--data", "halves", "--images", "0", "--protocol",
                         "halves", "--json")  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)
    assert [row["solver"] for row in rows] == ["smooth", "pinv"]
    assert rows[0]["rank"] == 1


def test_a_pattern_in_both_halves_is_a_warning(cli):
    def errors(data: str, images: str) -> str:
        code, _, err = cli("run", "-s", "smooth", "-o", "identity", "--data", data, "--images", images, "--protocol",
                           "halves")  # fmt: skip
        assert code == 0, err
        return err

    assert "does not hold: half a of one micrograph" in errors("halves:gain_error=0.03", "0:3")
    assert "independent" not in errors("halves", "0:3")
    assert "was not tested" in errors("halves", "0")


def test_a_network_trained_on_a_half_has_no_number_from_it():
    (record,) = run("network", "identity", data="halves", images="0:3", protocol="halves", floor=False)
    missing = [math.isnan(value) for value in record.values["mse_other"]]
    assert missing == [False, True, False]
    assert "trained on this half" in record.unmeasured["frc_other"]
    assert not any(map(math.isnan, record.values["psnr_clean"]))
    assert overlap(record) == "images"
    (record,) = run("network", "identity", data="halves", images="0,2", protocol="halves", floor=False)
    assert overlap(record) == ""
    assert not any(map(math.isnan, record.values["mse_other"]))


def test_a_wiener_filter_fitted_to_a_pair_has_no_number_from_it():
    fitted = "wiener:spectrum=cross_spectrum,spectrum.pairs=halves,spectrum.images=1:3"
    (record,) = run(fitted, "identity", data="halves", images="0:3", protocol="halves", floor=False)
    assert record.status == "ok", record.reason
    for column in ("mse_other", "mse_other_se", "psnr_other", "ssnr_other", "frc_other_pixels"):
        assert [math.isnan(value) for value in record.values[column]] == [False, True, True]
        assert "trained on this half" in record.unmeasured[column]
    assert not any(map(math.isnan, record.values["psnr_clean"]))
    assert overlap(record) == "images"
    assert record.problem["priors"][0]["cross_spectrum"]["micrographs"] == 2
    (record,) = run(fitted, "identity", data="halves", images="0", protocol="halves", floor=False)
    assert overlap(record) == ""
    assert not any(map(math.isnan, record.values["mse_other"]))


def test_a_result_does_not_depend_on_where_the_fitted_pairs_are(tmp_path):
    """The identity of a cell has the digests of the pairs and not their path."""
    rng, hashes = np.random.default_rng(0), []
    halves = rng.normal(size=(2, 3, 32, 32)).astype(np.float32)
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        for name, images in zip(("odd", "even"), halves, strict=True):
            np.save(folder / f"{name}.npy", images)
        solver = (f"wiener:spectrum=cross_spectrum,spectrum.pairs=pairs,spectrum.pairs.odd={folder}/odd.npy,"
                  f"spectrum.pairs.even={folder}/even.npy")  # fmt: skip
        (record,) = run(solver, "identity", data="halves", images="0", protocol="halves", floor=False)
        assert record.status == "ok", record.reason
        hashes.append(record.hash)
    assert hashes[0] == hashes[1]
    np.save(tmp_path / "there" / "odd.npy", halves[0] + 1)
    (record,) = run(solver, "identity", data="halves", images="0", protocol="halves", floor=False)
    assert record.hash != hashes[0]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1, 9])
def test_the_errors_of_denoisers_on_simulated_movies_are_the_true_ones(ratio):
    """`benchmarks/halves_metrics.py` with more pixels. ratio=9: the other half has three times the noise."""
    data = f"simulate_movies:3mht,size=256,frames=10,dose=5,count=4,ratio={ratio}"
    records = run(["gaussian", "wiener", "n2n"], "identity", data=data, images="0:4",
                  metrics=["mse", "mse_other"], protocol="halves")  # fmt: skip
    assert [record.status for record in records] == ["ok"] * 4
    for record in records:
        found, error, true = (np.array(record.values[name]) for name in ("mse_other", "mse_other_se", "mse_clean"))
        assert abs(found.mean() - true.mean()) < 3 * np.sqrt(np.square(error).sum()) / 4
        assert np.sqrt(np.square(error).sum()) / 4 < (0.01 if record.floor else 0.3) * true.mean()
