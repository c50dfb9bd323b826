"""Volumes through the command line: the table, the saved files, and what is refused or skipped."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryobench.errors import IncompatibleError
from cryobench.figures import read_views
from cryobench.plan.grid import Request, plan
from cryobench.registry import installed
from cryobench.sources.volume import Volume

VOXEL = 3.0
KINDS = {"operators": "operator", "noises": "noise", "metrics": "metric"}
FULL = {"sumpool": "sumpool:4"}
"""Specs of components that need a parameter."""


@pytest.fixture
def balls(tmp_path) -> Path:
    """A folder with two maps [24, 24, 24] of a few Gaussian balls, 3 Å per voxel."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.mgrid[:24, :24, :24], axis=-1)
    folder = tmp_path / "maps"
    folder.mkdir()
    for name in "ab":
        volume = np.zeros((24, 24, 24))
        for _ in range(6):
            centre, width = rng.uniform(7, 17, size=3), rng.uniform(1, 2)
            volume += np.exp(-np.square(grid - centre).sum(axis=-1) / (2 * width**2))
        with mrcfile.new(folder / f"{name}.mrc", data=volume.astype(np.float32)) as file:
            file.voxel_size = VOXEL
    return folder


def shell_correlation(a: np.ndarray, b: np.ndarray) -> list[float]:
    """FSC of two cubes on shells 1 to n / 2, from all coefficients of the full spectrum."""
    n = len(a)
    x, y = np.fft.fftn(a - a.mean()), np.fft.fftn(b - b.mean())
    k = np.fft.fftfreq(n, 1 / n)
    shell = np.floor(np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2) + 0.5)
    curve = []
    for r in range(1, n // 2 + 1):
        on = shell == r
        powers = np.sum(np.abs(x[on]) ** 2) * np.sum(np.abs(y[on]) ** 2)
        curve.append(float(np.sum(x[on] * y[on].conj()).real / np.sqrt(powers)))
    return curve


def resolution(curve: list[float], threshold: float, n: int, voxel: float) -> float:
    """The length in Å at which the curve first falls below the threshold, linear between shells."""
    for i, value in enumerate(curve):
        if value < threshold:
            assert i > 2, "expected a threshold crossed outside the innermost shells"
            fraction = (curve[i - 1] - threshold) / (curve[i - 1] - value)
            return n * voxel / (i + fraction)
    return 2 * voxel


def test_fourier_shell_correlation_is_in_angstrom(cli, balls):
    code, out, _ = cli(
        "run", "-s", "pinv", "-s", "tv", "-o", "identity", "-n", "gaussian:0.3", "-d", f"volume:{balls}/a.mrc",
        "--save", "reconstructions", "--csv", "board.csv",
    )  # fmt: skip
    assert code == 0
    assert "frc ↓ Å" in out
    rows = {row["solver"]: row for row in csv.DictReader(io.StringIO(Path("board.csv").read_text()))}
    truth = mrcfile.read(balls / "a.mrc")
    for solver, row in rows.items():
        (folder,) = Path("runs").glob(f"*-{solver}-*")
        with mrcfile.open(folder / "reconstructions.mrcs") as file:
            assert file.is_volume_stack()
            assert mrcfile.validate(folder / "reconstructions.mrcs")
            assert file.data is not None
            assert file.data.shape == (1, 24, 24, 24)
            assert float(file.voxel_size.x) == float(file.voxel_size.z) == pytest.approx(VOXEL)
            estimate = file.data[0].copy()
        curve = shell_correlation(truth, estimate)
        assert float(row["frc"]) == pytest.approx(resolution(curve, 1 / 2, 24, VOXEL), rel=1e-4)
        assert float(row["frc_seventh"]) == pytest.approx(resolution(curve, 1 / 7, 24, VOXEL), rel=1e-4)
        assert float(row["frc_area"]) == pytest.approx(np.mean(curve), abs=1e-4)
        span = float(np.ptp(truth))  # reconstructions are saved in the units of the map
        error = np.mean(np.square((estimate - truth).astype(np.float64) / span))
        assert float(row["psnr"]) == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert rows["tv"]["rank"] == "1"
    assert 2 * VOXEL < float(rows["tv"]["frc"]) < float(rows["pinv"]["frc"]) < 24 * VOXEL
    # the saved stack can be read as a source
    code, out, _ = cli("data", "info", f"volume:{folder}/reconstructions.mrcs")
    assert code == 0
    assert "24 x 24 x 24 voxels" in out


@pytest.mark.parametrize("suffix", ["tif", "ome.tif", "zarr"])
def test_a_reconstructed_volume_is_saved_in_other_formats_with_its_voxel_size(cli, balls, suffix):
    data = f"volume:{balls}/a.mrc"
    code, _, err = cli("run", "-s", "tikhonov:0.1", "-o", "identity", "-d", data, "--no-floor", "--save", suffix,
                       "--save", "reconstructions")  # fmt: skip
    assert code == 0, err
    (folder,) = Path("runs").glob("*-tikhonov-*")
    saved = Volume((str(folder / f"reconstructions.{suffix}"),)).open()
    np.testing.assert_array_equal(saved.read(0), mrcfile.read(folder / "reconstructions.mrcs")[0])
    assert saved.pixel_size(0) == (None if suffix == "tif" else pytest.approx(VOXEL))
    code, _, err = cli("run", "-s", "pinv", "-o", "identity", "-d", f"volume:{balls}", "--save", suffix)
    assert code == 2
    assert f"--save {suffix} holds one volume, and " in err


def test_volumes_are_measured_by_projections(cli, balls):
    """At the poses of a star file, with the CTF of each particle, through masks; `cg` is the floor."""
    rng = np.random.default_rng(0)
    rows = [(*rng.uniform(-180, 180, 3), *rng.normal(0, 3, 2), 12000 + 500 * i, 11000 + 300 * i, 20) for i in range(40)]
    columns = ["AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst", "DefocusU", "DefocusV"]
    header = "".join(f"_rln{name}\n" for name in [*columns, "DefocusAngle"])
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n"
    lines = "".join(" ".join(f"{value:.3f}" for value in row) + " 1\n" for row in rows)
    star = Path("particles.star")
    star.write_text(f"{optics}1 300 2.7 0.1\n\ndata_particles\n\nloop_\n{header}_rlnOpticsGroup\n{lines}")
    operators = [f"{before}project:poses=particles.star" for before in ("ctf@", "sumpool:4@ctf@", "fourier:0.5@ctf@")]
    chosen = [argument for name in [*operators, "project:count=20"] for argument in ("-o", name)]
    code, _, err = cli(
        "run", "-s", "cg:30", *chosen, "-d", f"volume:{balls}/a.mrc", "--size", "16", "--metric", "psnr",
        "--metric", "frc", "--csv", "board.csv",
    )  # fmt: skip
    assert code == 0, err
    table = list(csv.DictReader(io.StringIO(Path("board.csv").read_text())))
    assert [row["status"] for row in table] == ["ok"] * 8
    assert {row["solver"] for row in table} == {"cg", "cg:30"}
    assert max(float(row["frc_area"]) for row in table) > 0.95


def test_solvers_without_volume_support_are_skipped_with_a_reason(cli, balls):
    with_value = {"tiled", "emdiffuse", "regression"}  # which need another solver, or a network
    solvers = [name for name in installed().names("solvers") if name not in with_value]
    three = [name for name in solvers if 3 in installed().make("solvers", name).dims]
    assert {"pinv", "tikhonov", "wiener", "dct", "wavelet", "tv"} <= set(three)
    chosen = [argument for name in solvers for argument in ("-s", name)]
    code, _, err = cli(
        "run", *chosen, "-o", "fourier:0.5", "-n", "gaussian:0.1", "-d", f"volume:{balls}", "--images", "1",
        "--size", "12", "--invert", "--within", "circle", "--ceiling", "--csv", "board.csv",
    )  # fmt: skip
    assert code == 0, err
    rows = {row["solver"]: row for row in csv.DictReader(io.StringIO(Path("board.csv").read_text()))}
    for name in solvers:
        if name == "gaussian":
            assert "it needs the operator identity" in rows[name]["reason"]
        elif name in ("flow", "interpolate"):
            assert "it needs an operator such as decimate" in rows[name]["reason"]
        elif name == "fourier_inversion":
            assert "it needs images of views, as project" in rows[name]["reason"].replace("fourier_inversion", "it")
        elif name in three:
            assert rows[name]["status"] == "ok"
            assert 4 * VOXEL <= float(rows[name]["frc"]) <= 24 * VOXEL
        else:
            assert rows[name]["status"] == "skipped"
            assert "it supports images (2-D), got volumes (3-D) of 12 x 12 x 12" in rows[name]["reason"]
    assert rows["ceiling"]["status"] == "skipped"


def test_components_without_volume_support_are_refused_before_any_work(balls):
    refused = 0
    for kind, option in KINDS.items():
        for name in installed().names(kind):
            component = installed().get(kind, name)
            if not isinstance(component.dims, tuple) or 3 in component.dims:  # type: ignore[attr-defined]
                continue
            spec = FULL.get(name, name)
            request = {"solvers": ["pinv"], "operators": ["identity"], "data": [f"volume:{balls}/a.mrc"]} | {
                kind: [spec]
            }
            with pytest.raises(IncompatibleError) as caught:
                plan(Request(**request), installed())
            assert str(caught.value).startswith(
                f"{option} {spec} supports images (2-D), but a.mrc holds volumes (3-D) of 24 x 24 x 24; use "
            )
            assert (" identity" in str(caught.value)) == (kind == "operators")
            refused += 1
    assert refused >= 3  # sumpool, ctf, lpips


def test_nested_components_without_volume_support_are_refused(cli, balls, install_plugin):
    install_plugin(
        "cryobench-flat",
        {
            "cryobench.masks": {"flat": "flat_parts:Flat"},
            "cryobench.priors": {"plane": "flat_parts:Plane"},
            "cryobench.solvers": {"both": "flat_parts:Both"},
        },
        flat_parts="""
from dataclasses import dataclass
from typing import Annotated
import torch
from cryobench.core import FourierMask, Prior, Reconstruction, Solver
from cryobench.spec import Component

@dataclass(frozen=True)
class Flat(FourierMask):
    def draw(self, rho, shape, seed):
        return torch.ones(shape, dtype=torch.bool)

@dataclass(frozen=True)
class Plane(Prior):
    pass

@dataclass(frozen=True)
class Both(Solver):
    dims = (2, 3)
    prior: Annotated[Prior, Component("priors"), "a prior"] = Plane()
    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.operator.A_dagger(problem.y))
""",
    )
    data = f"volume:{balls}/a.mrc"
    code, _, err = cli("run", "-s", "pinv", "-o", "fourier:0.5,mask=flat", "-d", data)
    assert code == 2
    assert "mask flat supports images (2-D), but a.mrc holds volumes (3-D) of 24 x 24 x 24; use " in err
    code, _, err = cli("run", "-s", "both", "-o", "identity", "-d", data)
    assert code == 2
    assert "prior plane supports images (2-D), but a.mrc holds volumes (3-D)" in err


def test_figures_show_the_central_sections(cli, balls):
    code, _, _ = cli("run", "-s", "pinv", "-o", "identity", "-d", f"volume:{balls}", "--save", "figures")
    assert code == 0
    (folder,) = Path("runs").iterdir()
    for name in ("panel.png", "errors.png", "frc.png"):
        assert (folder / name).stat().st_size > 1000
    views = read_views(folder / "views.npz")
    assert views.pixel_size == pytest.approx([VOXEL, VOXEL])
    for shown, name in zip(views.truth, "ab", strict=True):
        volume = mrcfile.read(balls / f"{name}.mrc")
        low, high = volume.min(), volume.max()
        np.testing.assert_allclose(shown, 255 * (volume[12] - low) / (high - low), atol=0.51)
    code, _, _ = cli("leaderboard", "--format", "html=page.html")
    assert code == 0
    assert "a.mrc and 1 more" in Path("page.html").read_text()
    assert cli("data", "info", f"volume:{balls}", "--sheet", "sheet.png")[0] == 0
    assert Path("sheet.png").stat().st_size > 1000


def test_within_takes_a_ball_radius_in_angstrom(cli, balls):
    arguments = ("run", "-s", "pinv", "-o", "identity", "-n", "gaussian:0.2", "-d", f"volume:{balls}/b.mrc")
    code, _, _ = cli(
        *arguments, "--metric", "psnr", "--within", "circle:24", "--save", "reconstructions", "--csv", "b.csv"
    )
    assert code == 0
    (row,) = csv.DictReader(io.StringIO(Path("b.csv").read_text()))
    truth = mrcfile.read(balls / "b.mrc").astype(np.float64)
    (saved,) = Path("runs").glob("*/reconstructions.mrcs")
    error = (mrcfile.read(saved)[0] - truth) / np.ptp(truth)
    away = np.linalg.norm(np.stack(np.mgrid[:24, :24, :24], axis=-1) - 12, axis=-1)
    assert float(row["psnr"]) == pytest.approx(-10 * np.log10(np.mean(error[away <= 24 / VOXEL] ** 2)), abs=1e-3)
    code, _, err = cli(*arguments, "--within", "circle:60")
    assert code == 2
    assert "expected 1 to 12" in err


def test_invalid_volumes_are_refused_and_valid_ones_converted(cli, balls):
    np.save("flat.npy", np.ones((8, 8, 8), np.float32))
    code, _, err = cli("run", "-s", "pinv", "-o", "identity", "-d", "volume:flat.npy")
    assert code == 2
    assert "image 0 of flat.npy is constant" in err
    code, _, err = cli("run", "-s", "pinv", "-o", "identity", "-d", f"{balls}/a.mrc")
    assert code == 2
    assert f"--data volume:{balls}/a.mrc" in err
    assert "--as-stack" in err
    assert cli("data", "convert", f"volume:{balls}", "v.npy", "--normalize", "meanstd")[0] == 0
    assert np.load("v.npy").shape == (2, 24, 24, 24)
    code, _, err = cli("data", "convert", f"volume:{balls}", "v.mrcs")
    assert code == 2
    assert err.count("\n") == 1
