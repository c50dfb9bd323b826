"""The command `cryobench data`."""

from __future__ import annotations

import json
import warnings

import mrcfile
import numpy as np
import pytest
import starfile

from cryobench import cli as command
from cryobench.errors import DataWarning
from cryobench.sources.simulate import Simulate

SMALL = "3mht,snr=0.5,count=6,size=32"


def stack_file(path, images, pixel_size=1.5):
    with mrcfile.new(path, data=images.astype(np.float32)) as file:
        file.set_image_stack()
        file.voxel_size = pixel_size
    return path


def test_info_summarises_a_stack(cli, tmp_path):
    images = np.random.default_rng(0).normal(3, 2, (5, 8, 12))
    stack_file(tmp_path / "a.mrcs", images)
    code, out, err = cli("data", "info", "a.mrcs", "--json")
    summary = json.loads(out)
    assert (code, err) == (0, "")
    assert (summary["images"], summary["shape"], summary["pixel_size"]) == (5, [8, 12], [1.5, 1.5])
    assert summary["mean"] == pytest.approx(images.mean(), rel=1e-5)
    assert summary["deviation"] == pytest.approx(images.std(), rel=1e-5)
    assert (summary["low"], summary["high"]) == (pytest.approx(images.min()), pytest.approx(images.max()))
    code, out, _ = cli("data", "info", "a.mrcs")
    assert "8 x 12 pixels" in out
    assert "1.5 Å per pixel" in out
    assert "unknown" in out


def test_what_was_assumed_of_a_header_is_one_line_on_stderr(cli, tmp_path):
    path = stack_file(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(2, 8, 8)))
    with path.open("r+b") as file:
        file.seek(212)
        file.write(bytes(4))
    code, out, err = cli("data", "info", "a.mrcs", "--json")
    assert (code, json.loads(out)["images"]) == (0, 2)
    assert err.startswith("warning: a.mrcs has an unknown machine stamp (00 00); it was read as little-endian MRC")
    assert err.count("\n") == 1


def test_info_reports_the_origin_of_simulated_images_and_draws_a_sheet(cli, tmp_path):
    import matplotlib.image

    code, out, err = cli("data", "info", f"simulate:{SMALL}", "--sheet", "sheet.png", "--clean", "--images", "0:5")
    assert code == 0
    assert "simulated     structure 3mht, split test, seed 0" in out
    assert "clean images  known" in out
    assert "µm underfocus" in out
    assert "5 images on sheet.png" in err
    assert matplotlib.image.imread(tmp_path / "sheet.png").shape[1] == 5 * 1.2 * 150


def test_simulated_files_are_in_relions_format(cli, tmp_path):
    code, _, err = cli("data", "simulate", SMALL, "--out", "made")
    assert code == 0, err
    made = Simulate("3mht", snr=0.5, count=6, size=32).open()
    blocks = starfile.read(tmp_path / "made" / "particles.star")
    assert set(blocks) == {"optics", "particles"}
    optics, particles = blocks["optics"], blocks["particles"]
    assert optics["rlnImagePixelSize"].tolist() == [pytest.approx(made.pixel_size(0))]
    assert optics["rlnImageSize"].tolist() == [32]
    assert optics["rlnVoltage"].tolist() == [300]
    assert particles["rlnImageName"].tolist()[:2] == ["000001@particles.mrcs", "000002@particles.mrcs"]
    for column in ("rlnDefocusU", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnCtfBfactor"):
        np.testing.assert_allclose(particles[column], made.table[column], rtol=1e-9)
    for name, read in (("particles", made.read), ("clean", made.clean)):
        with mrcfile.open(tmp_path / "made" / f"{name}.mrcs") as file:
            assert file.is_image_stack()
            np.testing.assert_array_equal(file.data, np.stack([read(i) for i in range(6)]))
    # the package's own reader recovers the metadata
    code, out, _ = cli("data", "info", "made/particles.star", "--json")
    assert json.loads(out)["pixel_size"] == [pytest.approx(made.pixel_size(0))] * 2
    code, _, err = cli("data", "simulate", SMALL, "--out", "made")
    assert (code, err.count("\n")) == (2, 1)
    assert "exists; give another" in err
    assert cli("data", "simulate", SMALL, "--out", "made", "--no-clean", "--force")[0] == 0


def test_structures_with_different_pixel_sizes_have_an_optics_group_each(cli, tmp_path):
    assert cli("data", "simulate", "3mht+2nwl,snr=1,count=5,size=32", "--out", "made")[0] == 0
    blocks = starfile.read(tmp_path / "made" / "particles.star")
    assert len(blocks["optics"]) == 2
    assert blocks["particles"]["rlnOpticsGroup"].tolist() == [1, 2, 1, 2, 1]


def test_convert_keeps_the_table_and_normalises(cli, shared, tmp_path):
    source = shared / "data" / "empiar_10076_7.star"
    code, _, err = cli("data", "convert", source, "small.mrcs", "--size", 64, "--normalize", "relion", "--radius", 24,
                       "--invert", "--images", "1:7")  # fmt: skip
    assert code == 0, err
    images = mrcfile.read(tmp_path / "small.mrcs")
    y, x = np.mgrid[:64, :64] - 32
    background = images[:, x**2 + y**2 > 24**2]
    np.testing.assert_allclose(background.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(background.std(axis=1), 1, rtol=1e-4)
    blocks = starfile.read(tmp_path / "small.star")
    assert blocks["optics"]["rlnImagePixelSize"][0] == pytest.approx(1.31 * 5, rel=1e-3)
    assert blocks["particles"]["rlnDefocusU"].tolist()[0] == 15303.0
    # inverted: the correlation with the original images is negative
    plain = cli("data", "convert", source, "plain.npy", "--size", 64, "--images", "1:7")
    assert plain[0] == 0
    assert np.corrcoef(np.load(tmp_path / "plain.npy")[0].ravel(), images[0].ravel())[0, 1] < -0.99


def test_ranking_by_a_clean_metric_needs_clean_images(cli, blobs):
    code, out, _ = cli("run", "-s", "tikhonov:0.1", "-o", "identity", "-n", "gaussian:rel=1", "-d", f"simulate:{SMALL}",
                       "--by", "psnr_clean", "--json")  # fmt: skip
    assert code == 0
    scores = [row["psnr_clean"] for row in json.loads(out)]
    assert scores == sorted(scores, reverse=True)
    code, _, err = cli("run", "-s", "pinv", "-o", "identity", "-d", blobs, "--by", "psnr_clean")
    assert code == 2
    assert "--by 'psnr_clean' is not a column of this run" in err


@pytest.mark.parametrize("suffix", [".mrcs", ".npy"])
def test_convert_without_normalisation_preserves_the_data(cli, tmp_path, suffix):
    images = np.random.default_rng(0).normal(size=(5, 8, 8)).astype(np.float32)
    images[2] = 3
    stack_file(tmp_path / "a.mrcs", images)
    assert cli("data", "convert", "a.mrcs", f"b{suffix}")[0] == 0
    written = tmp_path / f"b{suffix}"
    np.testing.assert_array_equal(np.load(written) if suffix == ".npy" else mrcfile.read(written), images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere.mrcs"], "neither a file here nor a registered source"),
        (["info", "simulate:6zu6"], "neither a packaged structure nor a file"),
        (["info", "a.mrcs", "--sheet", "no/sheet.png"], "the folder no does not exist"),
        (["info", "a.mrcs", "--sheet", "s.png", "--clean"], "the clean images of a.mrcs are not known"),
        (["convert", "a.mrcs", "b.jpg"], "its suffix is '.jpg'; expected one of .mrcs, .npy, .tif, .tiff, .zarr"),
        (["convert", "a.mrcs", "a.mrcs"], "a.mrcs exists; give another"),
        (["convert", "a.mrcs", "b.mrcs", "--normalize", "p95"], "has negative pixels"),
        (["convert", "a.mrcs", "b.mrcs", "--normalize", "median"], "unknown normalisation 'median'"),
        (["convert", "a.mrcs", "b.mrcs", "--radius", "3"], "radius"),
        (["convert", "a.mrcs", "b.mrcs", "--images", "3:9"], "selects image 5"),
        (["simulate", "3mht,snr=0", "--out", "made"], "snr must be positive"),
        (["simulate", "empty.cif", "--out", "made"], "has no atoms"),
        (["info", "complex.mrcs"], "holds complex values"),
        (["info", "cut.mrcs"], "is truncated"),
        (["info", "bare.star"], "has no rlnImageName column"),
        (["info", "zero.star"], "pixel size of 0"),
    ],
)
def test_invalid_input_gives_one_line_and_exit_code_2(cli, tmp_path, arguments, message):
    stack_file(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(5, 8, 8)))
    whole = (tmp_path / "a.mrcs").read_bytes()
    (tmp_path / "cut.mrcs").write_bytes(whole[:-100])
    (tmp_path / "empty.cif").write_text("data_empty\n_entry.id empty\n")
    mrcfile.write(tmp_path / "complex.mrcs", np.zeros((2, 8, 8), np.complex64))
    (tmp_path / "bare.star").write_text("data_particles\n\nloop_\n_rlnDefocusU #1\n15000\n")
    (tmp_path / "zero.star").write_text(
        "data_particles\n\nloop_\n_rlnImageName #1\n_rlnImagePixelSize #2\n1@a.mrcs 0\n"
    )
    code, out, err = cli("data", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert out == ""
    assert not list(tmp_path.glob("b.*"))


def test_a_warning_about_data_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", lambda *given, **named: print("as before"))
    with command._printable_warnings():
        warnings.showwarning(DataWarning("the header\x1b differs"), DataWarning, "stacks.py", 1)
        warnings.showwarning(UserWarning("another"), UserWarning, "stacks.py", 1)
    printed = capsys.readouterr()
    assert (printed.err, printed.out) == ("warning: the header\\x1b differs\n", "as before\n")
