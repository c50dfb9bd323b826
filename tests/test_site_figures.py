"""Figures of the reference on the site. `.ci/nightly` builds the site with all of them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from site_tools import own, site_tool
from typer.testing import CliRunner

from cryobench.cli import app
from cryobench.registry import KINDS, installed


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> ModuleType:
    module = site_tool("site_figures")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "RUNS", tmp_path_factory.mktemp("runs"))
        yield module


@pytest.fixture(scope="module")
def examples() -> ModuleType:
    return site_tool("site_examples")


def test_every_component_that_makes_an_image_has_an_example_or_a_reason(figures, examples):
    assert set(KINDS) == {*examples.EXAMPLES, "masks", "priors", *figures.WITHOUT_FIGURES}
    for kind, shown in examples.EXAMPLES.items():
        without = {name for of, name in examples.WITHOUT if of == kind}
        assert set(shown) | without == set(own(kind)), kind
        assert not set(shown) & without
    assert {name for kind, name in examples.WITHOUT if kind == "priors"} <= set(own("priors"))


def test_examples_are_valid_specs(examples):
    for run in [*examples.SOLVERS.values(), examples.SPECTRUM]:
        for kind, spec in (("solvers", run.solver), ("operators", run.operator), ("noises", run.noise),
                           ("sources", run.data)):  # fmt: skip
            installed().make(kind, spec)
    for operator, data in examples.OPERATORS.values():
        installed().make("operators", operator)
        installed().make("sources", data)
    for kind in ("noises", "sources"):
        for spec in examples.EXAMPLES[kind].values():
            installed().make(kind, spec)


def test_the_command_of_a_solver_gives_the_psnr_of_its_figure(figures, tmp_path, monkeypatch):
    figure = figures.figure("solvers", "dct")
    titles = [picture.title for picture in figure.pictures]
    shown = [re.fullmatch(r"(?:floor )?`(\w+)`, (\S+) dB", title).groups() for title in titles[1:]]
    assert titles[0] == "truth"
    assert [name for name, _ in shown] == ["pinv", "dct"]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*figure.command.split()[1:], "--format", "csv=board.csv"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with Path("board.csv").open(newline="") as file:
        assert {row["solver"]: f"{float(row['psnr']):.1f}" for row in csv.DictReader(file)} == dict(shown)
    assert list(tmp_path.rglob("panel.png"))


def test_pictures_of_an_operator_are_truth_measurement_and_least_squares_solution(figures):
    truth, measured, solved = figures.figure("operators", "bin").pictures
    assert [truth.title, measured.title, solved.title] == ["truth x", "measurement y", "A⁺ y"]
    means = truth.pixels.astype(float).reshape(16, 4, 16, 4).mean(axis=(1, 3))
    assert np.corrcoef(means.ravel(), measured.pixels.ravel())[0, 1] > 0.99  # both in their own window
    assert np.array_equal(solved.pixels, solved.pixels[::4, ::4].repeat(4, 0).repeat(4, 1))
    assert np.abs(solved.pixels[::4, ::4] - means).max() < 8


def test_the_transfer_function_of_the_ctf_has_its_colours_of_sign(figures):
    *_, transfer = figures.figure("operators", "ctf").pictures
    red, _, blue = np.moveaxis(transfer.pixels.astype(int), -1, 0)
    orange = red > blue
    centre, rings = orange[32, 32], orange[32, 32:].astype(int)
    assert centre  # positive at the lowest frequencies, in RELION's convention
    assert 1 <= np.abs(np.diff(rings)).sum() <= 4


def test_denoising_brings_images_closer_to_the_truth(figures):
    for name in ("wavelet", "gaussian_field"):
        truth, noisy, denoised = (picture.pixels.astype(float) for picture in figures.figure("priors", name).pictures)
        assert np.square(denoised - truth).mean() < 0.6 * np.square(noisy - truth).mean(), name


def test_masks_noises_and_sources_are_drawn(figures):
    for kind, name, titles in (
        ("masks", "fourier_ring", ["seed 0", "seed 1"]),
        ("masks", "random_gaussian", ["mask 0", "mask 1"]),
        ("noises", "poisson", ["y without noise", "y with `poisson:10`"]),
        ("noises", "own", ["without noise", "image"]),
        ("sources", "gaussian_field", ["image 0", "image 1", "image 2", "image 3"]),
        ("sources", "simulate", ["image 0", "without noise", "image 1", "without noise"]),
    ):
        pictures = figures.figure(kind, name).pictures
        assert [picture.title for picture in pictures] == titles
        assert all(picture.pixels.std() > 5 for picture in pictures)
        assert not np.array_equal(pictures[0].pixels, pictures[1].pixels)


def test_a_figure_on_a_page_has_pictures_with_alternative_texts_and_its_command(figures):
    figure = figures.figure("masks", "checkerboard")
    text, files = figure.markdown("checkerboard")
    assert re.findall(r"!\[(.+)\]\((.+)\)", text) == [
        ("checkerboard: mask 0", "checkerboard-0.png"), ("checkerboard: mask 1", "checkerboard-1.png"),
    ]  # fmt: skip
    for content, picture in zip(files.values(), figure.pictures, strict=True):
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(np.asarray(image), picture.pixels)
    assert "```sh\nuv run python tools/site_figures.py masks/checkerboard FOLDER\n```" in text


def test_the_command_line_writes_the_pictures_and_refuses_what_is_none(figures, tmp_path, capsys):
    assert figures.main(["masks/superres", str(tmp_path / "made")]) == 0
    assert len(list((tmp_path / "made").glob("superres-*.png"))) == 2
    assert figures.main(["solvers/abinitio", str(tmp_path / "none")]) == 1
    assert figures.main(["hqs", str(tmp_path)]) == 2
    assert "give a component, as solvers/hqs" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    with pytest.raises(
        figures.FigureError, match=r"solvers/mine has no example; give it one in tools/site_examples\.py"
    ):
        figures.figure("solvers", "mine")
