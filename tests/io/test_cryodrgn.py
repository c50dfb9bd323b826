"""`cryobench data poses` against the formulas of the formats, and against cryoDRGN where it is installed."""

from __future__ import annotations

import argparse
import pickle

import numpy as np
import pandas as pd
import pytest
from cs_files import cs_table, with_fields, write_cs
from optics import ctf_table
from scipy.spatial.transform import Rotation
from star_files import write_star

from cryobench.io import cryodrgn as module
from cryobench.io.cryodrgn import drgn_tables

PIXEL, SIZE, COUNT = 1.7, 96, 5
ANGLES, SHIFTS = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"], ["rlnOriginXAngst", "rlnOriginYAngst"]


def particles(seed: int = 0) -> pd.DataFrame:
    """Poses, shifts and CTFs, with a phase plate."""
    rng = np.random.default_rng(seed)
    angles = pd.DataFrame(rng.uniform(-180, 180, (COUNT, 3)), columns=ANGLES)
    shifts = pd.DataFrame(rng.normal(0, 9, (COUNT, 2)), columns=SHIFTS)
    return pd.concat([angles, shifts, ctf_table(COUNT, seed).assign(rlnPhaseShift=rng.uniform(0, 90, COUNT))], axis=1)


@pytest.fixture
def star(tmp_path):
    path = tmp_path / "particles.star"
    write_star(path, particles(), "stack.mrcs", PIXEL, SIZE)
    return path


def plain_star(path, table: pd.DataFrame):
    """One table of RELION 3.0, without optics groups."""
    names = "".join(f"_{name} #{number}\n" for number, name in enumerate(table.columns, 1))
    path.write_text(f"data_\n\nloop_\n{names}{table.to_csv(sep=' ', header=False, index=False)}\n")
    return path


def written(folder):
    rotations, translations = pickle.loads((folder / "poses.pkl").read_bytes())
    return rotations, translations, pickle.loads((folder / "ctf.pkl").read_bytes())


def test_the_files_are_those_of_the_formulas(cli, star):
    code, out, err = cli("data", "poses", star.name, "--out", "drgn")
    assert (code, out, err) == (0, "", "5 particles in drgn/poses.pkl and drgn/ctf.pkl\n")
    rotations, translations, ctf = written(star.parent / "drgn")
    table = particles()
    assert {array.dtype for array in (rotations, translations, ctf)} == {np.dtype(np.float32)}
    # a slice of cryoDRGN is at coordinates @ rotation, which RELION's intrinsic ZYZ rotation takes to the volume
    plane = np.array([[1.0, 0, 0], [0, 1, 0]])
    turn = Rotation.from_euler("ZYZ", table[ANGLES].to_numpy(), degrees=True).as_matrix()
    np.testing.assert_allclose(plane @ rotations, (turn @ plane.T).swapaxes(1, 2), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotations), 1, atol=1e-5)
    # it moves an image by the translation, as RELION does by its origin
    np.testing.assert_allclose(translations, table[SHIFTS] / (PIXEL * SIZE), rtol=1e-6)
    columns = ["Voltage", "SphericalAberration", "AmplitudeContrast", "PhaseShift"]
    wanted = table[[f"rln{name}" for name in ("DefocusU", "DefocusV", "DefocusAngle", *columns)]].to_numpy()
    np.testing.assert_allclose(ctf[:, 2:], wanted, rtol=1e-6)
    np.testing.assert_allclose(ctf[:, :2], [[SIZE, PIXEL]] * COUNT, rtol=1e-6)


def test_cryodrgn_writes_the_same_and_reads_it(cli, star):
    pytest.importorskip("cryodrgn", reason="cryoDRGN is not installed")
    from cryodrgn.commands import parse_ctf_star, parse_pose_star
    from cryodrgn.ctf import load_ctf_for_training
    from cryodrgn.pose import PoseTracker

    cli("data", "poses", star.name, "--out", "ours")
    folder = star.parent
    for command, name in ((parse_pose_star, "poses.pkl"), (parse_ctf_star, "ctf.pkl")):
        parser = argparse.ArgumentParser()
        command.add_args(parser)
        command.main(parser.parse_args([str(star), "-o", str(folder / name)]))
    for ours, theirs in zip(written(folder / "ours"), written(folder), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    poses = PoseTracker.load(str(folder / "ours" / "poses.pkl"), COUNT, SIZE)
    np.testing.assert_allclose(poses.trans, particles()[SHIFTS] / PIXEL, rtol=1e-5)
    assert load_ctf_for_training(SIZE, str(folder / "ours" / "ctf.pkl")).shape == (COUNT, 8)


def test_tables_of_relion_3_0_and_of_cryosparc_give_the_same(tmp_path):
    table = particles()
    rotation = Rotation.from_euler("ZYZ", table[ANGLES].to_numpy(), degrees=True)
    pixels = table[SHIFTS].to_numpy() / PIXEL
    old = table.drop(columns=SHIFTS).assign(rlnOriginX=pixels[:, 0], rlnOriginY=pixels[:, 1])
    wanted = drgn_tables(plain_star(tmp_path / "old.star", old), SIZE, PIXEL)
    rows = np.resize(cs_table(blob_psize_A=PIXEL, blob_shape=SIZE), COUNT)
    for field, column in {"ctf/df1_A": "DefocusU", "ctf/df2_A": "DefocusV", "ctf/df_angle_rad": "DefocusAngle",
                          "ctf/phase_shift_rad": "PhaseShift"}.items():  # fmt: skip
        values = table[f"rln{column}"].to_numpy()
        rows[field] = np.radians(values) if field.endswith("rad") else values
    # CryoSPARC's vector is that of RELION's ZYZ rotation; its shifts may be in other pixels
    poses = {"pose": rotation.as_rotvec(), "shift": pixels / 2, "psize_A": np.full(COUNT, 2 * PIXEL)}
    cs = write_cs(tmp_path / "a.cs", with_fields(rows, {f"alignments3D/{name}": v for name, v in poses.items()}))
    got = drgn_tables(cs)
    for name in ("rotations", "translations", "ctf"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wanted.translations * SIZE, pixels, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda t: t.drop(columns=ANGLES), [], "has no rlnAngleRot column"),
        (lambda t: t.drop(columns="rlnAnglePsi"), [], "lacks rlnAnglePsi"),
        (lambda t: t.drop(columns=["rlnDefocusU", "rlnVoltage"]), [], "lacks rlnDefocusU, rlnVoltage"),
        (lambda t: t.drop(columns="rlnImagePixelSize"), [], "does not state the pixel size; give --pixel-size in Å"),
        (lambda t: t.drop(columns="rlnImageSize"), [], "does not state the image size; give --size in pixels"),
        (lambda t: t.assign(rlnImagePixelSize=np.linspace(1, 2, COUNT)), [], "different pixel size, 1 to 2 Å"),
        (lambda t: t.assign(rlnImageSize=[64, 96, 96, 96, 96]), [], "different image size, 64 to 96 pixels"),
        (lambda t: t.assign(rlnImageSize="large"), [], "row 1 has rlnImageSize large"),
        (lambda t: t.assign(rlnOriginXAngst=[0, 0, 1000, 0, 0]), [], "row 3 is shifted by (588.2"),
        (lambda t: t.assign(rlnAngleTilt=[0, np.inf, 0, 0, 0]), [], "row 2 has rlnAngleTilt inf"),
        (lambda t: t, ["--size", 48], "--size 48, but"),
        (lambda t: t, ["--size", 0], "--size must be positive"),
        (lambda t: t, ["--pixel-size", "nan"], "--pixel-size must be positive"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(cli, tmp_path, change, options, said):
    plain_star(tmp_path / "a.star", change(particles().assign(rlnImagePixelSize=PIXEL, rlnImageSize=SIZE)))
    code, out, err = cli("data", "poses", "a.star", "--out", "drgn", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "drgn").exists()


def test_files_are_replaced_together_and_only_on_request(cli, star, monkeypatch):
    cli("data", "poses", star.name, "--out", "drgn")
    folder = star.parent / "drgn"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_star(star, particles(1), "stack.mrcs", PIXEL, SIZE)
    code, _, err = cli("data", "poses", star.name, "--out", "drgn")
    assert (code, "drgn/poses.pkl exists" in err) == (2, True)
    with monkeypatch.context() as patch:
        dumps, calls = pickle.dumps, []
        patch.setattr(module.pickle, "dumps", lambda data: (calls.append(0), dumps(data))[1] if not calls else full())
        code, _, err = cli("data", "poses", star.name, "--out", "drgn", "--force")
    assert (code, err.count("\n"), "No space left" in err) == (2, 1, True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert cli("data", "poses", star.name, "--out", "drgn", "--force")[0] == 0
    assert {path.name for path in folder.iterdir()} == set(before)
    assert all((folder / name).read_bytes() != data for name, data in before.items())


def full():
    raise OSError(28, "No space left on device")
