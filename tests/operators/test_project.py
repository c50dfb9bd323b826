"""`project` against direct Fourier sums, the simulator, RELION's conventions worked out by hand, and dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from cs_files import cs_table, with_fields, write_cs
from optics import ctf_table
from scipy.spatial.transform import Rotation

from cryobench.core import MINMAX, Imaging, adjoint_gap, build_operator, check_operator
from cryobench.errors import DataError, IncompatibleError, ParameterError
from cryobench.io.writing import star_text
from cryobench.operators import project as module
from cryobench.operators import views
from cryobench.operators.composed import Composed
from cryobench.operators.ctf import Ctf
from cryobench.operators.fourier import Fourier
from cryobench.operators.identity import Identity
from cryobench.operators.noise import Gaussian
from cryobench.operators.project import Project, ProjectionOperator
from cryobench.operators.subsampling import Bin
from cryobench.operators.sumpool import SumPool
from cryobench.operators.views import ByViewOperator
from cryobench.physics.poses import ANGLES, SHIFTS, Poses
from cryobench.physics.potential import potential
from cryobench.plan.grid import Request, plan
from cryobench.registry import installed
from cryobench.rng import Rng
from cryobench.sources.simulate import Simulate
from cryobench.sources.structures import read_structure

PIXEL = 3.0
SUMPOOL = SumPool(2, 3)
COMPOSITIONS = [
    Composed(Ctf(), Project()),
    Composed(SUMPOOL, Composed(Ctf(), Project())),
    Composed(Fourier(0.5), Composed(Ctf(), Project())),
    Composed(Fourier(0.5), Composed(Bin(2), Project())),
]


def poses(count: int, seed: int = 0) -> pd.DataFrame:
    """Poses with shifts and CTFs."""
    rng = np.random.default_rng(seed)
    angles = pd.DataFrame(rng.uniform(-180, 180, (count, 3)), columns=["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"])
    shifts = pd.DataFrame(rng.normal(0, 4, (count, 2)), columns=["rlnOriginXAngst", "rlnOriginYAngst"])
    return pd.concat([angles, shifts, ctf_table(count, seed)], axis=1)


def taken(n: int, table: pd.DataFrame | None = None) -> Imaging:
    return Imaging((n, n, n), (PIXEL,), table)


def build(recipe, n=8, table=None, dtype=torch.float64):
    return build_operator(recipe, taken(n, table), seed=3, dtype=dtype)


def volumes(count: int, n: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn((count, 1, n, n, n), generator=torch.Generator().manual_seed(0), dtype=dtype)


def direct(x: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Projections [N, n, n] of a volume by sums over all voxels, and over all frequencies of the disc."""
    n = len(x)
    r, k = np.arange(n) - n // 2, np.fft.fftfreq(n, 1 / n)
    ky, kx = (axis.ravel() for axis in np.meshgrid(k, k, indexing="ij"))
    inside = np.hypot(kx, ky) < n / 2
    ky, kx = ky[inside], kx[inside]
    images = []
    for *angles, x_origin, y_origin in table[list(ANGLES + SHIFTS)].to_numpy().tolist():
        # RELION's matrix is the transpose of the intrinsic ZYZ rotation (Heymann et al. 2005), which turns the slice
        turn = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
        px, py, pz = turn @ np.stack([kx, ky, 0 * kx])
        wave = [np.exp(-2j * np.pi * np.outer(p, r) / n) for p in (pz, py, px)]
        slice_ = np.einsum("zyx,kz,ky,kx->k", x, *wave, optimize=True)
        along = [np.exp(2j * np.pi * np.outer(k, r - shift) / n) for k, shift in
                 ((ky, -y_origin / PIXEL), (kx, -x_origin / PIXEL))]  # fmt: skip
        image = np.einsum("k,ky,kx->yx", slice_, *along, optimize=True) / n**2
        assert np.abs(image.imag).max() < 1e-10 * np.abs(image).max()
        images.append(image.real)
    return np.stack(images)


@pytest.mark.parametrize(("n", "dtype", "error"), [(20, torch.float32, 1e-5), (15, torch.float32, 1e-5),
                                                   (10, torch.float64, 1e-11), (9, torch.float64, 1e-11)])  # fmt: skip
def test_slices_are_direct_fourier_sums(n, dtype, error):
    table, x = poses(4), volumes(2, n, dtype)
    y = build(Project(), n, table, dtype).A(x)
    assert tuple(y.shape) == (2, 4, n, n)
    assert y.dtype == dtype
    for volume, images in zip(x, y, strict=True):
        wanted = direct(volume[0].double().numpy(), table)
        assert np.linalg.norm(images.numpy() - wanted) < error * np.linalg.norm(wanted)


def test_images_are_those_of_the_simulator(tmp_path):
    """To the 1.6% of its interpolation, from the star file of its poses and CTFs."""
    n, atoms = 48, read_structure("3mht")
    simulated = Simulate("3mht", None, count=12, size=n, shift=6.0).open()
    pixel = simulated.pixel_size(0)
    star = tmp_path / "particles.star"
    star.write_text(star_text(star, simulated.table, "images.mrcs", pixel, n))
    volume = torch.from_numpy(potential(atoms, n, pixel, 50.0))[None, None]
    imaging = Imaging((n, n, n), (pixel,))
    wanted = torch.from_numpy(simulated.clean_block(range(12)))
    for recipe, error in ((Composed(Ctf(), Project(poses=str(star))), 0.016), (Project(poses=str(star)), math.inf)):
        off = (build_operator(recipe, imaging, seed=0).A(volume)[0] * pixel - wanted).norm() / wanted.norm()
        assert off < error
    assert off > 0.5  # without the CTF


STAR = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
1 3.0 300 2.7 0.1

data_particles

loop_
_rlnAngleRot #1
_rlnAngleTilt #2
_rlnAnglePsi #3
_rlnOriginXAngst #4
_rlnOriginYAngst #5
_rlnOpticsGroup #6
_rlnDefocusU #7
_rlnDefocusV #8
_rlnDefocusAngle #9
0  0  0   0 0 1 12000 11000 30
0  0  90  0 0 1 12000 11000 30
90 0  0   0 0 1 12000 11000 30
0  90 0   0 0 1 12000 11000 30
90 90 0   -6 9 1 12000 11000 30
"""
SEEN = [
    ((6, 0), (0, 4), (0, 0)),  # from above: x to the right, y as in the volume
    ((0, -6), (4, 0), (0, 0)),  # psi turns the image: (x, y) -> (y, -x)
    ((0, -6), (4, 0), (0, 0)),  # as rot does where tilt is 0
    ((0, 0), (0, 4), (-3, 0)),  # tilt about y: z goes to -x
    ((2, -9), (2, -3), (-1, -3)),  # rot turns y to x, which tilt turns to the line of sight; then a shift by (2, -3)
]
"""(x, y) of the balls at x = 6, y = 4 and z = 3 voxels from the origin in each image of STAR, by hand from the matrices
of Heymann et al. 2005."""


def ball(n: int, at: tuple[float, ...], width: float) -> np.ndarray:
    """A Gaussian of peak 1 at (x, y, ...) voxels from the origin, [(z,) y, x]."""
    grid = np.arange(n) - n // 2
    axes = np.meshgrid(*[grid] * len(at), indexing="ij")[::-1]
    return np.exp(-sum((axis - a) ** 2 for axis, a in zip(axes, at, strict=True)) / (2 * width**2))


@pytest.mark.parametrize("n", [32, 33])
def test_a_star_file_written_by_hand_gives_the_views_of_relions_convention(n, tmp_path):
    """Three balls of different weight on the axes, which no mirror image has in the same places."""
    (tmp_path / "hand.star").write_text(STAR)
    width, weights = 1.5, (1.0, 2.0, 3.0)
    volume = sum(w * ball(n, at, width) for w, at in zip(weights, ((6, 0, 0), (0, 4, 0), (0, 0, 3)), strict=True))
    recipe = Project(poses=str(tmp_path / "hand.star"))
    found = build_operator(recipe, taken(n), seed=0, dtype=torch.float64).A(torch.from_numpy(volume)[None, None])[0]
    line = np.sqrt(2 * np.pi) * width  # the integral of a ball along a line through its centre
    for image, places in zip(found.numpy(), SEEN, strict=True):
        wanted = line * sum(w * ball(n, at, width) for w, at in zip(weights, places, strict=True))
        np.testing.assert_allclose(image, wanted, atol=2e-3 * wanted.max())


def test_a_cryosparc_table_gives_the_images_of_the_star_file(tmp_path):
    """Its rotation vectors are those of RELION's ZYZ rotation, its shifts RELION's origins in pixels of their own."""
    star, table = tmp_path / "hand.star", poses(5)
    star.write_text(star_text(star, table, "images.mrcs", PIXEL, 8))
    fields = {
        "pose": Rotation.from_euler("ZYZ", table[list(ANGLES)].to_numpy(), degrees=True).as_rotvec(),
        "shift": table[list(SHIFTS)].to_numpy() / (2 * PIXEL),
        "psize_A": np.full(5, 2 * PIXEL),
    }
    rows = with_fields(np.resize(cs_table(blob_psize_A=PIXEL), 5), {f"alignments3D/{k}": v for k, v in fields.items()})
    for field, name in {"df1_A": "U", "df2_A": "V", "df_angle_rad": "Angle"}.items():
        values = table[f"rlnDefocus{name}"].to_numpy()
        rows[f"ctf/{field}"] = np.radians(values) if name == "Angle" else values
    rows["ctf/phase_shift_rad"] = 0
    cs = write_cs(tmp_path / "a.cs", rows)
    for make in (Project, lambda poses: Composed(Ctf(), Project(poses=poses))):
        images = [build_operator(make(poses=str(path)), taken(8), seed=0, dtype=torch.float64).A(volumes(1, 8))
                  for path in (cs, star)]  # fmt: skip
        torch.testing.assert_close(*images, rtol=0, atol=1e-4 * float(images[1].abs().max()))


def test_older_tables_have_shifts_in_pixels(tmp_path):
    new, old = tmp_path / "new.star", tmp_path / "old.star"
    new.write_text(STAR)
    old.write_text(STAR.replace("XAngst", "X").replace("YAngst", "Y").replace(" -6 9 ", " -2 3 "))
    images = [build_operator(Project(poses=str(path)), taken(8), seed=0).A(volumes(1, 8, torch.float32))
              for path in (new, old)]  # fmt: skip
    torch.testing.assert_close(*images)


# --------------------------------------------------------------------------------------------------------- algebra


def matrix(operator) -> np.ndarray:
    n = operator.image_shape[0]
    return operator.A(torch.eye(n**3, dtype=torch.float64).reshape(-1, 1, n, n, n)).flatten(1).T.numpy()


@pytest.mark.parametrize("recipe", [Project(), *COMPOSITIONS], ids=str)
def test_the_adjoint_is_exact_in_float32_and_the_normal_operator_close(recipe):
    operator, x = build(recipe, 20, poses(7), torch.float32), volumes(2, 20, torch.float32)
    for seed in range(3):
        assert adjoint_gap(operator, seed=seed) < 1e-6
    wanted = operator.A_adjoint(operator.A(x))
    assert (operator.A_adjoint_A(x) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("recipe", COMPOSITIONS, ids=str)
def test_an_operator_after_it_measures_every_image(recipe):
    """With that image's CTF; y is image by image."""
    table, x = poses(5), volumes(2, 8)
    operator = build(recipe, 8, table)
    images = build(Project(), 8, table).A(x)
    outer, seen = recipe.outer, Imaging((8, 8), (PIXEL,) * 5, table)
    for part in [outer] if not isinstance(recipe.inner, Composed) else [recipe.inner.outer, outer]:
        live = build_operator(part, seen, seed=3, dtype=torch.float64)
        images = torch.stack([torch.cat([live.select(slice(i, i + 1)).A(image[None, None])[0] for i, image
                                         in enumerate(volume)]) for volume in images])  # fmt: skip
        seen = Imaging(tuple(images.shape[2:]), (PIXEL * 8 / images.shape[-1],) * 5, table)
    torch.testing.assert_close(operator.A(x), images, rtol=0, atol=1e-9 * float(images.abs().max()))
    assert tuple(operator.measurement_shape) == tuple(images.shape[1:]) == recipe.check(taken(8, table))
    torch.testing.assert_close(operator.mean_response, operator.A(torch.ones(1, 1, 8, 8, 8).double()))
    D = matrix(operator)
    assert np.linalg.matrix_rank(D) <= operator.rank <= min(D.shape)
    assert operator.compute_norm() == pytest.approx(np.linalg.norm(D, 2), rel=1e-5)


@pytest.mark.parametrize("recipe", [Project(), *COMPOSITIONS], ids=str)
def test_batches_of_images_change_nothing(recipe, monkeypatch):
    table, x = poses(5), volumes(2, 8)
    whole = build(recipe, 8, table)
    y, normal = whole.A(x), whole.A_adjoint_A(x)
    monkeypatch.setattr(module, "batch_of", lambda side: 2)
    monkeypatch.setattr(views, "_PIXELS", 3 * 8 * 8)
    parts = build(recipe, 8, table)
    torch.testing.assert_close(parts.A(x), y)
    torch.testing.assert_close(parts.A_adjoint(y), whole.A_adjoint(y))
    torch.testing.assert_close(parts.A_adjoint_A(x), normal)
    assert parts.rank == whole.rank
    if whole.noise_in_range:
        torch.testing.assert_close(parts.on_range(y + 1), whole.on_range(y + 1))


@pytest.mark.parametrize("recipe", [Project(), *COMPOSITIONS], ids=str)
def test_rows_of_whole_images_keep_the_structure(recipe):
    operator = build(recipe, 8, poses(5))
    M = operator.measurement_shape[0] // 5
    part = torch.tensor([3, 0]).repeat_interleave(M) * M + torch.arange(M).repeat(2)
    rows, x = operator.rows(part), volumes(1, 8)
    assert type(rows) is type(operator)
    torch.testing.assert_close(rows.A(x), operator.A(x)[:, part])
    torch.testing.assert_close(rows.A_adjoint_A(x), rows.A_adjoint(rows.A(x)))
    assert rows.nominal_compression == pytest.approx(operator.nominal_compression * 5 / 2)
    assert operator.rows(slice(None)) is operator
    if M > 1:  # half of the measurements of an image
        some = operator.rows(slice(1, 2 * M))
        torch.testing.assert_close(some.A(x), operator.A(x)[:, 1 : 2 * M])


def test_operators_that_are_diagonal_in_fourier_keep_the_normal_operator_of_the_projection():
    table = poses(3)
    assert isinstance(build(Composed(Fourier(0.5), Composed(Ctf(), Project())), 8, table), ProjectionOperator)
    assert isinstance(build(Composed(Identity(), Project()), 8, table), ProjectionOperator)
    assert isinstance(build(Composed(SUMPOOL, Project()), 8, table), ByViewOperator)


@pytest.mark.parametrize("recipe", [Composed(Fourier(0.5), Composed(Ctf(), Project())),
                                    Composed(Fourier(0.5), Composed(Bin(2), Project()))], ids=str)  # fmt: skip
def test_detector_noise_is_confined_image_by_image(recipe):
    """Of 40 small images from one volume: the noise has more dimensions than the volume has voxels."""
    operator = build(recipe, 4, poses(40))
    assert operator.noise_in_range
    y = torch.zeros((1, *operator.measurement_shape), dtype=torch.float64)
    noisy = Gaussian(0.5).apply(y, operator, MINMAX, Rng(0, ["0"]))
    torch.testing.assert_close(operator.on_range(noisy.y), noisy.y)
    assert float(noisy.y.std()) == pytest.approx(float(noisy.sigma), rel=0.1)
    kept = float((noisy.y[0].flatten(1).norm(dim=1) > 0).double().mean())
    assert kept == 1


# ----------------------------------------------------------------------------------------------- poses and messages


def test_random_poses_are_nested_and_depend_on_the_seed():
    draw = {seed: Project(20).draw(taken(8), seed)["poses"] for seed in (0, 1)}
    assert torch.equal(draw[0][:7], Project(7).draw(taken(8), 0)["poses"])
    assert not torch.equal(draw[0], draw[1])
    many = Poses.uniform(5000, 0).matrices
    assert many.mean(dim=0).abs().max() < 0.04
    assert (many.square().mean(dim=0) - 1 / 3).abs().max() < 0.03


def test_what_is_drawn_builds_the_same_operator_without_the_table(tmp_path):
    star = tmp_path / "hand.star"
    star.write_text(STAR)
    recipe = Composed(Ctf(), Project(count=4, poses=str(star)))
    drawn = dict(recipe.draw(taken(8), 0))
    wanted = recipe.build(taken(8), drawn, dtype=torch.float64, device=torch.device("cpu")).A(volumes(1, 8))
    star.unlink()
    again = recipe.build(taken(8), drawn, dtype=torch.float64, device=torch.device("cpu")).A(volumes(1, 8))
    assert torch.equal(again, wanted)
    assert len(wanted[0]) == 4


@pytest.mark.parametrize(
    ("make", "imaging", "error", "message"),
    [
        (lambda: Project(0), None, ParameterError, "count must be at least 1 image, got 0"),
        (lambda: Project(pixel_size=0.0), None, ParameterError, "pixel_size must be positive, in Å, got 0"),
        (lambda: Project(poses=""), None, ParameterError, "the path is empty"),
        (Project, taken(8), IncompatibleError, "the volumes come without poses; give project:count=200"),
        (lambda: Project(5), Imaging((8, 8, 6)), IncompatibleError, "project needs a cube, got a volume of 8 x 8 x 6"),
        (lambda: Project(5), Imaging((8, 8)), IncompatibleError, r"project supports volumes \(3-D\), got images"),
        (lambda: Project(5), Imaging((3, 3, 3)), IncompatibleError, "at least 4 voxels a side, got 3"),
        (lambda: Project(5), Imaging((8, 8, 8), (3.0, 4.0)), IncompatibleError, "pixel sizes from 3 to 4 Å"),
        (Project, Imaging((8, 8, 8), (), poses(3)), IncompatibleError, "shifts in Å, and the volume states no pixel"),
        (lambda: Project(4), taken(8, poses(3)), DataError, "has 3 particles, fewer than count=4"),
        (lambda: Project(poses="no.star"), taken(8), DataError, "no.star does not exist; give an existing table"),
        (Project, taken(8, poses(3).assign(rlnAngleTilt=[1.0, np.nan, 2.0])), DataError, "row 2 has rlnAngleTilt nan"),
        (Project, taken(8, poses(3).assign(rlnOriginXAngst="far")), DataError, "row 1 has rlnOriginXAngst far"),
        (Project, taken(8, poses(3).drop(columns="rlnAnglePsi")), DataError, "lacks rlnAnglePsi"),
        (Project, taken(8, poses(3).drop(columns="rlnDefocusV")), DataError, "lacks rlnDefocusV; the CTF needs"),
        (lambda: Composed(Ctf(), Project(5)), taken(8), IncompatibleError, "ctf: the images have no CTF; give one"),
        (lambda: Composed(SumPool(3), Project(5)), taken(8), IncompatibleError, "sumpool:3 does not divide images"),
        (lambda: Composed(Ctf(9000.0), Composed(SUMPOOL, Project(5))), taken(8), IncompatibleError, "gives 15 images"),
        (lambda: Composed(Project(5), Project(5)), taken(8), IncompatibleError, "supports volumes"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(make, imaging, error, message):
    with pytest.raises(error, match=message) as caught:
        check_operator(make(), imaging)
    assert "\n" not in str(caught.value)


def test_other_files_have_no_poses(tmp_path):
    star = tmp_path / "other.star"
    star.write_text("\ndata_\n\nloop_\n_rlnImageName\n1@a.mrcs\n")
    with pytest.raises(DataError, match="has no rlnAngleRot column"):
        check_operator(Project(poses=str(star)), taken(8))


def test_the_results_of_a_table_depend_on_its_contents_alone(tmp_path):
    np.save(tmp_path / "v.npy", volumes(1, 8)[0, 0].numpy())

    def hash_of(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        operator = f"ctf@project:poses={tmp_path}/{name},pixel_size=3"
        return plan(Request(["pinv"], [operator], data=[f"volume:{tmp_path}/v.npy"]), installed()).cells[0].hash

    first = hash_of("a.star", STAR)
    assert hash_of("b.star", STAR) == first
    assert hash_of("b.star", STAR.replace("90 90 0", "90 91 0")) != first
