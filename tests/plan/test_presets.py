"""Presets: specs such as `dct@pixel-c4`, protection of validation images, and atomic files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cryobench.errors import CryobenchError, ResultsError, SelectionError, UnknownName
from cryobench.plan import grid
from cryobench.plan.dataset import load, source_spec
from cryobench.plan.presets import (
    Setting,
    Validation,
    add_setting,
    choose,
    presets_folder,
    read_preset,
    source_identity,
)
from cryobench.registry import installed

PARAMETERS = {"lam": "0.5", "cut": "none", "tol": "1e-05", "method": "primal_dual", "box": "true"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    add_setting(Setting("dct", PARAMETERS, ()), "p", tmp_path / "presets")
    add_setting(Setting("hqs", {"prior": "diffusion", "prior.source": "./x", "steps": "7"}, ()), "p",
                tmp_path / "presets")  # fmt: skip
    return tmp_path / "presets"


def test_a_setting_round_trips(folder):
    validation = (Validation("demo", "demo", ("3", "10"), ("0" * 64, "1e10")),)
    texts = ("no", "off", "1e-05", "12", "-0.5", "12:30", "", "inf", "2026-01-02", "0x10", "~")
    odd = {f"key{number}": text for number, text in enumerate(texts)}
    add_setting(Setting("tv", odd, validation, {"by": "psnr", "best": 1 / 3}), "p", folder)
    assert read_preset(folder / "p.yaml")["tv"] == Setting("tv", odd, validation, {"by": "psnr", "best": 1 / 3})
    assert dict(read_preset(folder / "p.yaml")["dct"].parameters) == PARAMETERS
    assert {path.name for path in folder.iterdir()} == {"p.yaml", ".p.lock"}


@pytest.mark.parametrize(
    ("text", "means", "shown"),
    [
        ("dct@p", "dct:0.5,tol=1e-05,method=primal_dual,box=true", "dct@p"),
        ("dct:0.1@p", "dct:0.1,tol=1e-05,method=primal_dual,box=true", "dct:0.1@p"),
        ("dct:lam=0.1@p", "dct:0.1,tol=1e-05,method=primal_dual,box=true", "dct:0.1@p"),
        ("dct:lam=auto,box=false@p", "dct:tol=1e-05,method=primal_dual", "dct:auto,box=false@p"),
        ("hqs:steps=3@p", "hqs:prior=diffusion:./x,steps=3", "hqs:steps=3@p"),
        ("hqs:prior=embedded@p", "hqs:steps=7", "hqs:prior=embedded@p"),
        ("hqs:prior.noise=0.2@p", "hqs:prior=diffusion:./x,prior.noise=0.2,steps=7", "hqs:prior.noise=0.2@p"),
    ],
)
def test_stated_parameters_override_those_of_the_preset(folder, text, means, shown):
    chosen = choose(text, installed(), folder)
    assert chosen.solver == installed().make("solvers", means)
    assert (chosen.label, chosen.preset) == (shown, "p")
    assert choose(chosen.label, installed(), folder) == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dct@q", "no preset 'q' in .*; there are p "),
        ("dct@pp", "did you mean 'p'"),
        ("tv@p", "the preset 'p' has no setting for 'tv'; there are dct, hqs"),
        ("dctt@p", "no solver 'dctt'; did you mean 'dct'"),
        ("dct@p:3", "the name of a preset after '@'"),
        ("dct@p@p", "the name of a preset after '@'"),
        ("dct:lamm=3@p", "'dct:lamm=3@p': 'dct' has no parameter 'lamm'"),
        ("dct:form=constraint@p", "'dct:form=constraint@p': dct: form=constraint has no weight"),
        ("dct@../p", "expected a component name"),
    ],
)
def test_unknown_presets_and_settings_give_a_one_line_error(folder, text, message):
    with pytest.raises(CryobenchError, match=message) as error:
        choose(text, installed(), folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["", "solvers: 3", "a: [", "[]", "\x00", "solvers: {dct: {parameters: {lam: [1]}, validation: [], made: {}}}"],
)
def test_an_invalid_preset_file_gives_a_one_line_error(folder, text):
    (folder / "p.yaml").write_text(text)
    with pytest.raises(ResultsError, match=r"p\.yaml is not a preset") as error:
        choose("dct@p", installed(), folder)
    assert "\n" not in str(error.value)


def test_the_folder_of_presets(monkeypatch):
    monkeypatch.delenv("CRYOBENCH_PRESETS", raising=False)
    assert presets_folder() == Path("presets")
    monkeypatch.setenv("CRYOBENCH_PRESETS", "~/there")
    assert presets_folder() == Path("~/there").expanduser()
    assert presets_folder("here") == Path("here")


# ------------------------------------------------------------------------------------------------------ in a plan


def planned(*solvers: str, **changed) -> list[grid.Cell]:
    asked = {"operators": ("identity",), "data": ("blobs.npy",), "images": "0:2", "metrics": ("mse",), "floor": False}
    return grid.plan(grid.Request(solvers, **(asked | changed)), installed()).cells


def test_a_solver_and_its_preset_are_two_rows_even_with_equal_parameters(folder, blobs):
    plain, tuned, again = planned("dct:0.5,tol=1e-05,method=primal_dual,box=true", "dct@p", "dct:lam=1@p")
    assert plain.solver == tuned.solver
    assert plain.resolved == {key: value for key, value in tuned.resolved.items() if key != "preset"}
    assert tuned.resolved["preset"] == "p"
    assert tuned.labels["solver"] == "dct@p"
    assert len({plain.hash, tuned.hash, again.hash}) == 3


def test_the_same_solver_of_the_same_preset_is_one_row(folder, blobs):
    (only,) = planned("dct@p", "dct:lam=0.5@p")
    assert only.labels["solver"] == "dct@p"
    add_setting(Setting("dct", PARAMETERS, ()), "q", folder)
    assert [cell.hash == only.hash for cell in planned("dct@p", "dct@q")] == [True, False]


def test_the_hash_depends_on_the_parameters_and_not_on_the_search(folder, blobs):
    (before,) = planned("dct@p")
    add_setting(Setting("dct", PARAMETERS, (), {"best": 3}), "p", folder)
    assert planned("dct@p")[0].hash == before.hash
    add_setting(Setting("dct", PARAMETERS | {"lam": "0.4"}, ()), "p", folder)
    assert planned("dct@p")[0].hash != before.hash


def test_a_folder_of_presets_can_be_given(folder, blobs, tmp_path):
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UnknownName, match="no preset 'p'"):
        planned("dct@p")
    assert planned("dct@p", presets=str(tmp_path / "elsewhere"))[0].labels["solver"] == "dct@p"


def tuned_on(folder: Path, text: str, images: str, **options: str) -> None:
    data = load(source_spec(text, options, installed()), images, installed())
    seen = Validation(source_identity(data.spec, installed()), data.label, data.ids, data.image_digests)
    add_setting(Setting("dct", PARAMETERS, (seen,)), "p", folder)


def test_validation_images_are_refused_in_any_file(folder, blobs, tmp_path):
    tuned_on(folder, "blobs.npy", "2,4")
    with pytest.raises(SelectionError, match=r"dct@p: image 4 of blobs\.npy was used to tune the preset p"):
        planned("dct@p", images="3:6")
    assert len(planned("dct@p", images="0,1,3,5")) == 1
    assert len(planned("dct", images="2,4")) == 1
    np.save(tmp_path / "other.npy", np.load(blobs)[::-1])
    with pytest.raises(SelectionError, match=r"image 1 of other\.npy"):
        planned("dct@p", data=("other.npy",), images="0:2")


def test_simulated_validation_images_are_refused_at_another_size_or_sign(folder):
    tuned_on(folder, "simulate:count=8", "2", size="32")
    for options in ({"size": "24"}, {"size": "32", "invert": "true"}):
        with pytest.raises(SelectionError, match="image 2 of"):
            planned("dct@p", data=("simulate:count=8",), data_options=options, images="1:4")
        assert planned("dct@p", data=("simulate:count=8",), data_options=options, images="3:5")
    assert planned("dct@p", data=("simulate:count=8,seed=1",), data_options={"size": "24"}, images="1:4")


# ------------------------------------------------------------------------------------------------- several at once


PUT = """
import sys
from pathlib import Path
from cryobench.plan.presets import Setting, add_setting

for k in range(20):
    add_setting(Setting(sys.argv[1], {"lam": str(k)}, ()), "p", Path())
"""


def started(script: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_concurrent_writes_of_one_preset_lose_no_setting(tmp_path):
    names = [f"solver{k}" for k in range(4)]
    writers = [started(PUT, tmp_path, name) for name in names]
    assert [writer.wait(120) for writer in writers] == [0] * len(names)
    settings = read_preset(tmp_path / "p.yaml")
    assert {name: setting.parameters["lam"] for name, setting in settings.items()} == dict.fromkeys(names, "19")
    assert {path.name for path in tmp_path.iterdir()} == {"p.yaml", ".p.lock"}
