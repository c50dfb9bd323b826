"""Files saved with a record: iterates, figures, reconstructions and their deviation."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest
from PIL import Image

import cryobench as cb
from cryobench import runner
from cryobench.figures import read_views
from cryobench.figures.gif import FRAME_SIDE
from cryobench.plan import grid
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.runner import Observer
from cryobench.sources.stacks import File

PLUGIN = """
from dataclasses import dataclass
import torch
from cryobench.core import recording
from cryobench.core import Column, Measured, Metric, Reconstruction, Solver

@dataclass(frozen=True)
class Shows(Solver):
    '''Iterates go from black to white, and estimates from white to black.'''
    steps: int = 5
    def solve(self, problem, *, rng, progress=None):
        x = torch.full(problem.image_batch_shape, -1.0)
        recorded = recording._recording.get() is not None
        for step in range(self.steps):
            x.fill_(-1 + 2 * step / (self.steps - 1))
            recording.offer(x, -x)
        return Reconstruction(x, {"recorded": torch.full((problem.batch,), float(recorded))})

@dataclass(frozen=True)
class Unsure(Solver):
    '''A deviation of `by` in the first half of an image and 0 in the other.'''
    by: float = 0.1
    only_small: bool = False
    info: bool = False
    flat: bool = False
    def solve(self, problem, *, rng, progress=None):
        x = torch.zeros(problem.image_batch_shape)
        deviation = torch.zeros_like(x)
        deviation[:, :, : x.shape[2] // 2] = self.by
        if self.flat:
            deviation = deviation[:, 0]
        if self.only_small and problem.batch > 1:
            deviation = None
        info = {"deviation": torch.zeros(problem.batch)} if self.info else {}
        return Reconstruction(x, info, deviation=deviation)

@dataclass(frozen=True)
class LargestDeviation(Metric):
    columns = (Column("largest_deviation", "none"),)
    def measure(self, case, reconstruction):
        return Measured({"largest_deviation": reconstruction.deviation.amax(dim=(1, 2, 3))})
"""


@pytest.fixture
def plugin(install_plugin):
    groups = {
        "cryobench.solvers": {"shows": "shows_plugin:Shows", "unsure": "shows_plugin:Unsure"},
        "cryobench.metrics": {"largest_deviation": "shows_plugin:LargestDeviation"},
    }
    return install_plugin("cryobench-shows", groups, shows_plugin=PLUGIN)


class Listener(Observer):
    def __init__(self):
        self.warnings, self.reused = [], []

    def warn(self, message):
        self.warnings.append(message)

    def cell_finished(self, record, *, reused):
        self.reused.append(reused)


def execute(out, *, force=False, **options):
    listener = Listener()
    plan = grid.plan(grid.Request(**{"operators": ["sumpool:4"], "metrics": ["psnr"]} | options), installed())
    records = list(runner.execute(plan, store=Results(out), force=force, observer=listener))
    return records, listener


def test_the_iterates_of_the_first_image_are_saved_as_an_animation(plugin, blobs, tmp_path):
    records, listener = execute(tmp_path, solvers=["shows"], data=[str(blobs)], save=["animation"], floor=False,
                                batch=2, images="0:6")  # fmt: skip
    assert listener.warnings == []
    assert records[0].solver_info["recorded"] == [1, 1, 0, 0, 0, 0]  # only the first batch is recorded
    (path,) = tmp_path.glob("*/animation.gif")
    with Image.open(path) as animation:
        assert animation.n_frames == 5
        shown = []
        for number in range(5):
            animation.seek(number)
            pixels = np.asarray(animation.convert("L")).astype(int)
            shown.append((pixels[5, 5], pixels[5, -5]))
    expected = [(255 * k // 4, 255 - 255 * k // 4) for k in range(5)]
    np.testing.assert_allclose(shown, expected, atol=2)
    assert pixels.shape[0] >= FRAME_SIDE


def test_many_iterates_are_thinned_and_the_first_and_last_are_kept(plugin, blobs, tmp_path):
    execute(tmp_path, solvers=["shows:1000"], data=[str(blobs)], save=["animation"], floor=False)
    (path,) = tmp_path.glob("*/animation.gif")
    with Image.open(path) as animation:
        assert 30 < animation.n_frames <= 65
        first = np.asarray(animation.convert("L"))[5, 5]
        animation.seek(animation.n_frames - 1)
        last = np.asarray(animation.convert("L"))[5, 5]
    assert (first, last) == (0, 255)


def test_iterates_are_recorded_only_on_request(plugin, blobs, tmp_path):
    records, _ = execute(tmp_path, solvers=["shows"], data=[str(blobs)], save=["reconstructions"], floor=False)
    assert set(records[0].solver_info["recorded"]) == {0}
    assert not list(tmp_path.glob("*/animation.gif"))


def test_a_solver_without_iterates_gives_one_warning_and_is_not_run_again(plugin, blobs, tmp_path):
    request = {"solvers": ["dct:steps=3"], "data": [str(blobs)], "noises": ["none", "gaussian:0.1"], "ceiling": True}
    records, first = execute(tmp_path, save=["animation"], **request)
    assert [record.status for record in records] == ["ok", "ok", "skipped"] * 2
    assert len(first.warnings) == 1  # for dct, and not for the floor, which was not requested
    assert "dct:steps=3 does not record its iterates" in first.warnings[0]
    assert not list(tmp_path.glob("*/animation.gif"))
    again, second = execute(tmp_path, save=["animation"], **request)
    assert second.reused == [True, True, False] * 2  # skipped cells are run again
    assert [record for record in again if record.status == "ok"] == [r for r in records if r.status == "ok"]
    assert second.warnings == first.warnings
    _, other = execute(tmp_path, save=["reconstructions"], **request)  # another file is saved without a warning
    assert (other.warnings, len(list(tmp_path.glob("*/reconstructions.mrcs")))) == ([], 4)
    _, both = execute(tmp_path, save=["reconstructions", "animation"], **request)
    assert both.reused == second.reused


def test_the_ceiling_has_no_iterates_and_gives_no_warning(tmp_path):
    request = {"solvers": ["pinv"], "data": ["simulate:3mht,snr=1,count=4,size=32"], "ceiling": True}
    records, listener = execute(tmp_path, save=["animation", "reconstructions"], **request)
    assert records[1].unavailable == ["animation"]
    assert all(warning.startswith("pinv ") for warning in listener.warnings)
    assert len(list(tmp_path.glob("*/reconstructions.mrcs"))) == 2
    assert execute(tmp_path, save=["animation", "reconstructions"], **request)[1].reused == [True, True]


def test_an_animation_requested_later_runs_the_cell_again(plugin, blobs, tmp_path):
    request = {"solvers": ["shows"], "data": [str(blobs)], "floor": False}
    out = tmp_path / "runs"
    execute(out, save=["reconstructions"], **request)
    execute(out, save=["animation"], **request)
    (folder,) = out.iterdir()
    assert {"animation.gif", "reconstructions.mrcs"} <= {path.name for path in folder.iterdir()}
    assert execute(out, save=["animation"], **request)[1].reused == [True]


FIGURES = {"panel.png", "errors.png", "frc.png", "views.npz"}


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"record.json", "metrics.csv", "curves.npz"}


def test_figures_saves_what_the_solver_provides_without_warnings(plugin, blobs, tmp_path):
    request = {"solvers": ["shows", "dct:steps=3"], "data": [str(blobs)]}
    records, listener = execute(tmp_path, save=["figures"], **request)
    assert listener.warnings == []
    found = {next(tmp_path.glob(f"*-{record.hash[:12]}")): record for record in records}
    assert {record.solver: files(folder) for folder, record in found.items()} == {
        "pinv": FIGURES,
        "dct:steps=3": FIGURES,
        "shows": FIGURES | {"animation.gif"},
    }
    assert execute(tmp_path, save=["figures"], **request)[1].reused == [True] * 3
    assert execute(tmp_path, save=["panel", "frc"], **request)[1].reused == [True] * 3


def test_missing_figures_are_added_and_existing_files_kept(blobs, tmp_path):
    request = {"solvers": ["dct:steps=3"], "data": [str(blobs)], "floor": False}
    out = tmp_path / "runs"
    execute(out, save=["panel", "reconstructions"], **request)
    assert execute(out, save=["figures"], **request)[1].reused == [False]
    (folder,) = out.iterdir()
    assert files(folder) == FIGURES | {"reconstructions.mrcs"}


def test_views_contain_the_truth_and_the_reconstruction(blobs, tmp_path):
    execute(tmp_path / "runs", solvers=["dct:steps=3"], data=[str(blobs)], floor=False, images="1:6",
            save=["views", "reconstructions"])  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    views = read_views(folder / "views.npz")
    assert (views.images, views.pixel_size) == (["1", "2", "3", "4"], [None] * 4)
    stacks = {"truth": np.load(blobs)[1:5], "reconstruction": mrcfile.read(folder / "reconstructions.mrcs")[:4]}
    low, high = (end(stacks["truth"], axis=(1, 2), keepdims=True) for end in (np.min, np.max))
    for name, stack in stacks.items():
        shown = 255 * ((stack - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(getattr(views, name), shown, atol=0.51)


@pytest.mark.parametrize("metrics", [["frc"], ["psnr"]])
def test_frc_is_computed_once_for_the_metric_and_its_figure(blobs, tmp_path, monkeypatch, metrics):
    from cryobench import figures
    from cryobench.metrics.spectral import Frc

    drawn, measured, measure = [], [], Frc.measure
    monkeypatch.setattr(Frc, "measure", lambda self, *given: measured.append(1) or measure(self, *given))
    monkeypatch.setattr(figures, "ring_correlations", lambda curves, *_, **__: drawn.append(curves))
    execute(tmp_path / "runs", solvers=["pinv"], data=[str(blobs)], images="0:5", metrics=metrics, save=["frc"])
    (curves,) = drawn
    assert len(measured) == 1
    assert curves.shape == (5, 16)
    assert (curves[:, 0] > 0.9).all()  # the lowest ring of a smooth image is measured


@pytest.mark.parametrize("batch", [1, 4, "auto"])
def test_a_deviation_is_reported_per_image_and_saved_in_the_units_of_the_file(plugin, blobs, tmp_path, batch):
    options = {"data": blobs, "images": "1:6", "floor": False, "metrics": ["psnr", "largest_deviation"], "batch": batch}
    (record,) = cb.run("unsure:0.2", "sumpool:4", out=tmp_path, save=["reconstructions"], **options)
    assert record.status == "ok", record.reason
    assert record.solver_info["deviation"] == pytest.approx([0.2 / 2**0.5] * 5)
    assert record.values["largest_deviation"] == pytest.approx([0.2] * 5)
    (path,) = tmp_path.glob("*/deviation.mrcs")
    found, images = mrcfile.read(path), np.load(blobs)[1:6]
    span = np.ptp(images, axis=(1, 2))
    np.testing.assert_allclose(found[:, :16].max(axis=(1, 2)), 0.1 * span, rtol=1e-5)  # 0.2 of half the span
    np.testing.assert_allclose(found[:, :16].min(axis=(1, 2)), 0.1 * span, rtol=1e-5)
    assert not found[:, 16:].any()  # no offset
    assert len(list(tmp_path.glob("*/reconstructions.mrcs"))) == 1


@pytest.mark.parametrize("suffix", ["tif", "ome.tif", "zarr"])
def test_reconstructions_and_deviations_are_saved_in_other_formats(plugin, blobs, tmp_path, suffix):
    options = {"data": blobs, "images": "1:4", "floor": False, "metrics": ["psnr"]}
    cb.run("unsure:0.2", "sumpool:4", out=tmp_path / "both", save=["reconstructions", suffix], **options)
    cb.run("unsure:0.2", "sumpool:4", out=tmp_path / "one", save=[suffix], **options)
    (both,), (one,) = (tmp_path / "both").glob("*unsure*"), (tmp_path / "one").glob("*unsure*")
    assert not list(one.glob("*.mrcs"))
    for name in ("reconstructions", "deviation"):
        exact = mrcfile.read(both / f"{name}.mrcs")
        for folder in (both, one):
            stack = File(str(folder / f"{name}.{suffix}")).open()
            np.testing.assert_array_equal(stack.read_block(range(len(stack))), exact)
    assert not list(tmp_path.glob("*/.*"))


def test_a_deviation_missing_in_some_batches_is_omitted(plugin, blobs, tmp_path):
    options = {"data": blobs, "floor": False, "out": tmp_path, "save": ["reconstructions"]}
    (record,) = cb.run("unsure:only_small=true", "sumpool:4", images="0:3", batch=2, **options)
    assert record.status == "ok"
    assert "deviation" not in record.solver_info
    assert not list(tmp_path.glob("*/deviation.mrcs"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unsure:-1", "negative or not finite"),
        ("unsure:inf", "negative or not finite"),
        ("unsure:nan", "negative or not finite"),
        ("unsure:flat=true", "deviation is [4, 32, 32], expected a tensor [4, 1, 32, 32]"),
        ("unsure:info=true", "an info 'deviation'"),
    ],
)
def test_an_invalid_deviation_fails_the_cell(plugin, blobs, spec, message):
    (record,) = cb.run(spec, "sumpool:4", data=blobs, floor=False)
    assert record.status == "failed"
    assert message in record.reason


@pytest.mark.parametrize("scaling", ["none", "relion", "p95"])
def test_reconstructions_are_in_the_units_of_the_file_for_every_scaling(blobs, tmp_path, scaling):
    import mrcfile

    images = 3 * np.load(blobs) + 1
    np.save(blobs, images)
    cb.run("pinv", "identity", data=blobs, images="0:2", scaling=scaling, metrics=["psnr"], out=tmp_path / "runs",
           save=["reconstructions"])  # fmt: skip
    (path,) = tmp_path.glob("runs/*pinv*/reconstructions.mrcs")
    np.testing.assert_allclose(mrcfile.read(path), images[:2], rtol=1e-5)
