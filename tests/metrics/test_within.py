"""`--within`: the evaluated region, from the option to the record; and missing metrics with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.metrics
import torch
from cases import case_of

import cryobench as cb
from cryobench import runner
from cryobench.errors import ParameterError, PluginError
from cryobench.io.fourier_crop import fourier_resize
from cryobench.io.scaling import relion
from cryobench.metrics.within import Within, inside, parse_within
from cryobench.plan import grid
from cryobench.record import Record
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import read_structure

METRICS = ["mse", "mae", "psnr", "ssim", "l2", "measurement_mse"]

PLUGIN = """
from dataclasses import dataclass
from typing import Annotated
import numpy as np
import torch
from cryobench.core import Column, Measured, Metric, Reconstruction, Solver, Source, Stack

class Rings(Stack):
    shape, label = (32, 32), "rings"
    def __init__(self, source): self.source = source
    def __len__(self): return 3
    def read(self, index): return np.random.default_rng(index).normal(size=(32, 32)).astype(np.float32)
    def pixel_size(self, index): return None if self.source.unknown else 2.0
    def particle_radius(self, index): return [20.0, None, 200.0][index] if self.source.radius else self.source.radius

@dataclass(frozen=True)
class Stated(Source):
    radius: float = 1.0
    unknown: bool = False
    def open(self): return Rings(self)

@dataclass(frozen=True)
class Looks(Metric):
    columns = (Column("radius", "none"),)
    def measure(self, case, reconstruction):
        within = [-1.0] * len(case.truth) if case.within is None else case.within
        return Measured({"radius": torch.tensor(within)})

@dataclass(frozen=True)
class Moody(Metric):
    columns = (Column("mood", "higher"), Column("other", "lower"))
    nan: bool = True
    digest: str = ""
    def measure(self, case, reconstruction):
        value = torch.tensor([float(i) for i in map(int, case.image_ids)])
        mood = torch.where((value == 1) & self.nan, torch.nan, value)
        return Measured({"mood": mood, "other": value}, unmeasured={"mood": "it is\\nMonday"})
    def weights_digest(self): return self.digest

@dataclass(frozen=True)
class Spread(Solver):
    def solve(self, problem, *, rng, progress=None):
        x = problem.operator.A_dagger(problem.y)
        return Reconstruction(x, deviation=torch.full_like(x, 0.2))
"""
NEW = ("coverage", "diversity", "frc", "lpips", "null_error", "phase", "range_error", "ssnr")


@pytest.fixture
def plugin(install_plugin):
    groups = {
        "cryobench.sources": {"stated": "within_plugin:Stated"},
        "cryobench.metrics": {"looks": "within_plugin:Looks", "moody": "within_plugin:Moody"},
        "cryobench.solvers": {"spread": "within_plugin:Spread"},
    }
    return install_plugin("cryobench-within", groups, within_plugin=PLUGIN)


# ------------------------------------------------------------------------------------------------ the text


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("image", Within()),
        ("circle", Within("circle")),
        ("circle:75", Within("circle", 75.0)),
        ("circle:62.5", Within("circle", 62.5)),
        ("circle:1e2", Within("circle", 100.0)),
    ],
)
def test_valid_regions(text, within):
    assert parse_within(text) == within
    assert parse_within(str(within)) == within


@pytest.mark.parametrize("text", ["", "square", "circle:", "circle:-5", "circle:0", "circle:nan", "circle:inf",
                                  "circle:big", "circle:5,3", "image:4", "circle:7@image"])  # fmt: skip
def test_the_error_for_an_invalid_region_is_one_line(text):
    with pytest.raises(ParameterError, match="--within: expected image, circle, or circle:75") as error:
        parse_within(text)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- radii in pixels


def test_the_radius_is_that_of_the_source_or_the_largest_circle(plugin):
    def radii(data, within):
        (record,) = cb.run("pinv", "identity", data=data, metrics="looks", within=within)
        assert record.status == "ok", record.reason
        assert record.problem["within"] == within
        stated = record.problem.get("within_radius_pixels", [-1.0] * 3)
        assert record.values["radius"] == pytest.approx(stated)
        return stated

    assert radii("stated", "image") == [-1, -1, -1]
    assert radii("stated", "circle") == [10, 16, 16]  # 20 Å at 2 Å a pixel; not stated; more than the image holds
    assert radii("stated", "circle:25") == [12.5, 12.5, 12.5]
    assert radii("stated:unknown=true", "circle") == [16, 16, 16]


@pytest.mark.parametrize(
    ("data", "within", "wanted"),
    [
        ("stated:unknown=true", "circle:25", "the pixel size of rings is not known"),
        ("stated", "circle:33", "16.5 pixels on rings at 2 Å per pixel; expected 1 to 16"),
        ("stated", "circle:1", "0.5 pixels"),
        ("stated", "disc", "--within: expected"),
    ],
)
def test_an_invalid_circle_is_refused_before_any_work(plugin, data, within, wanted, tmp_path):
    with pytest.raises(ParameterError, match=wanted) as error:
        cb.run("pinv", "identity", data=data, within=within, out=tmp_path / "runs")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_an_invalid_particle_radius_names_the_source(plugin):
    with pytest.raises(PluginError, match="particle radius of image 0 of rings must be a positive"):
        cb.run("pinv", "identity", data="stated:0")


def test_simulated_particles_state_the_radius_of_their_farthest_atom():
    stack = Simulate("3mht", snr=None, count=6, size=32, shift=0.0, ctf=False, b_factor=10).open()
    radius = stack.particle_radius(0)
    assert radius == read_structure("3mht").radius
    assert stack.particle_radius(5) == radius
    y = torch.arange(32) - 16
    outside = (y[:, None] ** 2 + y**2).sqrt() * stack.pixel_size(0) > radius + 2 * stack.pixel_size(0)
    for index in range(6):
        image = torch.from_numpy(stack.clean(index))
        assert image[outside].square().sum() < 1e-3 * image.square().sum()


# ----------------------------------------------------------------------------------- what is measured in a circle


def reconstructions(data, out, **options) -> tuple[np.ndarray, np.ndarray, Record]:
    """Truth and reconstruction on [0, 1], and the record of the second cell, which is the solver's."""
    import mrcfile

    _, record = cb.run("dct:steps=5", "sumpool:4", data=data, metrics=METRICS, out=out, save=["reconstructions"],
                       images="0:3", **options)  # fmt: skip
    (path,) = out.glob("*dct*/reconstructions.mrcs")
    images, scale = np.load(data)[:3], record.problem["scale"]
    offset, factor = (np.array(scale[name])[:, None, None] for name in ("offset", "factor"))
    low, high = offset - factor, offset + factor
    return (images - low) / (high - low), (mrcfile.read(path) - low) / (high - low), record


@pytest.mark.parametrize("within", ["image", "circle"])
def test_pixel_metrics_use_only_pixels_inside_the_circle(blobs, tmp_path, within):
    truth, x, record = reconstructions(blobs, tmp_path, within=within)
    y = np.arange(32) - 16
    inside = np.hypot(y[:, None], y) <= (16 if within == "circle" else 99)
    error = (x - truth)[:, inside]
    maps = [skimage.metrics.structural_similarity(*pair, data_range=1, full=True)[1]
            for pair in zip(truth, x, strict=True)]  # fmt: skip
    wanted = {
        "mse": (error**2).mean(axis=1),
        "mae": np.abs(error).mean(axis=1),
        "psnr": -10 * np.log10((error**2).mean(axis=1)),
        "l2": np.sqrt((error**2).sum(axis=1)),
        "ssim": [whole[3:-3, 3:-3][inside[3:-3, 3:-3]].mean() for whole in maps],
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(record.values[name], values, rtol=1e-4)
    if within == "image":
        pairs = list(zip(truth, x, strict=True))
        for name, reference in (("ssim", skimage.metrics.structural_similarity),
                                ("psnr", skimage.metrics.peak_signal_noise_ratio)):  # fmt: skip
            np.testing.assert_allclose(record.values[name], [reference(*p, data_range=1) for p in pairs], rtol=1e-4)


def test_a_circle_changes_the_cell_but_not_solver_and_measurements(blobs, tmp_path):
    def run(**options):
        return cb.run("dct:steps=5", "sumpool:4", data=blobs, out=tmp_path, metrics=METRICS, **options)

    image, circle, again = run(), run(within="circle"), run(within="circle")
    assert len({record.hash for record in (*image, *circle)}) == 4
    assert [r.environment["created"] for r in again] == [r.environment["created"] for r in circle]
    for whole, within in zip(image, circle, strict=True):
        assert within.values["measurement_mse"] == whole.values["measurement_mse"]
        assert within.values["psnr"] != whole.values["psnr"]
        assert within.problem["data_digest"] == whole.problem["data_digest"]
    assert {record.problem["within"] for record in Results(tmp_path).read_all(pytest.fail)} == {"image", "circle"}


def test_the_hash_of_a_cell_depends_on_the_radius(plugin):
    def hashed(data, within):
        request = grid.Request(["pinv"], ["identity"], data=[data], metrics=["looks"], within=within)
        return grid.plan(request, installed()).cells[0].hash

    pairs = [("stated", "image"), ("stated", "circle"), ("stated", "circle:20"), ("stated", "circle:21")]
    assert len({hashed(*pair) for pair in pairs}) == 4
    assert hashed("stated", "circle:20.0") == hashed("stated", "circle:20")


def test_the_command_line(cli, blobs):
    code, out, err = cli("run", "-s", "dct:steps=3", "-o", "sumpool:4", "-d", blobs, "--within", "circle", "--json")
    assert code == 0, err
    within = [json.loads(path.read_text())["problem"]["within"] for path in Path("runs").glob("*/record.json")]
    assert within == ["circle", "circle"]
    assert len(json.loads(out)) == 2
    code, _, err = cli("run", "-s", "dct", "-o", "sumpool:4", "-d", blobs, "--within", "circle:20")
    assert (code, err.count("\n")) == (2, 1)
    assert "the pixel size of blobs.npy is not known" in err


# ------------------------------------------------------------------------------- no number, and why there is none


def moods(spec, **options) -> Record:
    request = grid.Request(["pinv"], ["identity", "sumpool:4"], data=["stated"], metrics=[spec, "mse"], **options)
    first, *_ = runner.execute(grid.plan(request, installed()))
    return first


def test_a_reason_is_recorded(plugin):
    record = moods("moody", batch=1)
    assert record.unmeasured == {"mood": "it is Monday"}
    assert np.isnan(record.values["mood"]).tolist() == [False, True, False]


def test_a_reason_without_a_missing_number_is_dropped(plugin):
    assert moods("moody:false").unmeasured == {}


def test_reasons_are_read_back(plugin, tmp_path):
    (first,) = cb.run("pinv", "identity", data="stated", metrics="moody", out=tmp_path)
    (kept,) = Results(tmp_path).read_all(pytest.fail)
    assert kept.unmeasured == first.unmeasured == {"mood": "it is Monday"}


def test_the_hash_of_a_cell_depends_on_the_weights_of_a_metric(plugin):
    hashes = {moods(spec).hash for spec in ("moody", "moody:digest=a", "moody:digest=b")}
    assert len(hashes) == 3


def test_every_metric_is_measured_in_a_run(plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for within in ("image", "circle"):
        records = cb.run("spread", "sumpool:4,count=4", noises="gaussian:rel=0.1", data="stated",
                         metrics=[*NEW, "mse"], within=within, out=tmp_path / "runs")  # fmt: skip
        pinv, spread = records
        assert (pinv.status, spread.status) == ("ok", "ok"), pinv.reason + spread.reason
        columns = {column["name"] for column in spread.columns}
        assert {name for name, values in spread.values.items() if np.isfinite(values).all()} == columns - {"lpips"}
        assert set(spread.unmeasured) == {"lpips"}
        coverage = {"coverage", "coverage_68", "coverage_95", "coverage_error"}
        assert set(pinv.unmeasured) == {"lpips", "diversity"} | coverage
        if within == "image":
            squares = np.square([spread.values["range_error"], spread.values["null_error"]]).sum(axis=0)
            np.testing.assert_allclose(squares, spread.values["mse"], rtol=1e-5)
        (path,) = (tmp_path / "runs").glob(f"*spread*{spread.hash[:12]}/curves.npz")
        curves = np.load(path)
        assert {name: curves[name].shape for name in curves} == {
            "frc": (3, 16), "ssnr": (3, 16), "phase": (3, 16), "coverage": (3, 19)
        }  # fmt: skip


@pytest.mark.parametrize(("N", "n"), [(65, 33), (64, 33), (65, 46), (64, 32)])
def test_circle_and_background_are_centred_on_a_resized_particle(N, n):
    y, x = np.ogrid[-(N // 2) : N - N // 2, -(N // 2) : N - N // 2]
    small = fourier_resize(np.exp(-(x**2 + y**2) / (2 * (N / 10) ** 2)), n)
    mask = inside(case_of(torch.from_numpy(small)[None, None], within=[n / 4]))[0, 0].numpy()
    pixels = np.argwhere(mask)
    np.testing.assert_allclose(pixels.mean(axis=0), n // 2)
    np.testing.assert_allclose(np.average(pixels, axis=0, weights=small[mask]), n // 2, atol=1e-3)
    assert relion(small, "the particle", radius=n / 4).offset == pytest.approx(small[~mask].mean(dtype=np.float64))
