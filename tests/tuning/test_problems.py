"""Tuning tasks: the problems of a suite, without its test images, which are not read."""

from __future__ import annotations

import pytest
import toys

from cryobench.errors import CryobenchError, SelectionError, SuiteError
from cryobench.plan.grid import Request
from cryobench.plan.suite_file import read_suite
from cryobench.registry import installed
from cryobench.results.store import Results
from cryobench.tuning.objective import Objective, measure_of
from cryobench.tuning.problems import from_request, from_suite, searched_fields
from cryobench.tuning.search import Budget, Search, Tuning

SUITE = """
solvers: [toy, other, plain, "toy@p"]
operators: ["identity", "fourier:0.5"]
noises: [none, "gaussian:rel=0.05"]
data: spy
images: "0:6"
seeds: [1, 2]
include:
  - {solvers: toy, operators: "sumpool:2", noises: none, seeds: 3}
exclude:
  - {solver: "toy*", operator: identity, noise: "gaussian*"}
"""


@pytest.fixture(autouse=True)
def spied(tmp_path, monkeypatch, install_plugin):
    """A file with the numbers of the images that were read."""
    path = tmp_path / "spied"
    path.touch()
    monkeypatch.setenv("SPIED", str(path))
    monkeypatch.chdir(tmp_path)
    toys.install(install_plugin)
    return path


def tasks(tmp_path, text: str = SUITE, **given):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    request = Request(**{"solvers": (), "operators": (), "data": (), "images": "8:10"} | given)
    return from_suite(read_suite(path), request, installed())


def problems(task) -> list[tuple]:
    objective = Objective(task, measure_of("mse", ["mse"], installed()), installed(), Results("unused"))
    return [
        (*(cell.labels[name] for name in ("operator", "noise", "data")), cell.seed, len(cell.dataset.ids))
        for plan in objective.plans(task.solver)
        for cell in plan.cells
    ]


def test_each_solver_is_tuned_on_its_problems_in_the_suite(tmp_path):
    found, left_out = tasks(tmp_path)
    assert [task.solver for task in found] == ["toy", "other"]
    assert left_out == ["plain: nothing to tune", "toy@p: nothing to tune"]
    kinds = [("identity", "none"), ("fourier:0.5", "none"), ("fourier:0.5", "gaussian:rel=0.05")]
    toy = [(*kind, "spy", seed, 2) for seed in (1, 2) for kind in kinds] + [("sumpool:2", "none", "spy", 3, 2)]
    assert sorted(problems(found[0])) == sorted(toy)
    other = [(*kind, "spy", seed, 2) for seed in (1, 2) for kind in [*kinds, ("identity", "gaussian:rel=0.05")]]
    assert sorted(problems(found[1])) == sorted(other)


def test_one_of_two_specs_of_a_solver_must_be_chosen(tmp_path):
    twice = SUITE.replace("other,", 'other, "other:cost=1",')
    with pytest.raises(CryobenchError, match="one setting for other, got other and other:cost=1; choose one"):
        tasks(tmp_path, twice)
    found, left_out = tasks(tmp_path, twice, solvers=("other:cost=1",))
    assert ([task.solver for task in found], left_out) == (["other:cost=1"], [])


def from_request_of(*solvers: str):
    return from_request(Request(solvers, ("identity",), data=("spy",), images="8:10"), installed())


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("plain", "nothing to tune"),
        ("pinv", "nothing to tune"),
        ("toy:x=0.1,way=good", "nothing to tune"),
        ("toy@p", "has the parameters of a preset; tune toy"),
        ("toyy", "did you mean 'toy'"),
    ],
)
def test_solvers_that_cannot_be_tuned_are_refused(solver, message):
    with pytest.raises(CryobenchError, match=message) as error:
        from_request_of(solver)
    assert "\n" not in str(error.value)


def test_stated_parameters_are_not_searched():
    names = [[field.name for field in searched_fields(spec, installed())] for spec in ("toy", "toy:0.1", "toy:way=bad")]
    assert names == [["x", "way"], ["way"], ["x"]]


@pytest.mark.parametrize(
    ("suite", "given"),
    [
        ({}, {"images": "5:7"}),
        ({}, {"images": "3,8"}),
        ({"data: spy": "data: 'spy:0'"}, {"images": "5"}),
        ({"data: spy": "data: [demo, 'spy:seed=0']"}, {"images": "5", "data": ("spy",)}),
        ({'images: "0:6"': "size: 4"}, {"images": "3"}),  # the first four, at another size
        ({'images: "0:6"': 'images: "6:"'}, {"images": "0,11"}),
    ],
)
def test_test_images_of_the_suite_are_refused_and_not_read(tmp_path, spied, suite, given):
    text = SUITE
    for before, after in suite.items():
        assert before in text
        text = text.replace(before, after)
    with pytest.raises(SelectionError, match=r"suite\.yaml, line 1, tests on image \d+ of spy; tune on"):
        tasks(tmp_path, text, **given)
    assert spied.read_text() == ""


def test_a_file_is_recognised_under_another_path(tmp_path, blobs):
    text = f"solvers: tikhonov\noperators: identity\ndata: {blobs}\nimages: '0:2'\n"
    with pytest.raises(SelectionError, match="tests on image 1 of"):
        tasks(tmp_path, text, images="1:3", data=("./blobs.npy",))
    assert tasks(tmp_path, text, images="2:4", data=("./blobs.npy",))[0]


def test_no_test_image_is_ever_read(tmp_path, spied):
    found, _ = tasks(tmp_path, SUITE.replace("images:", "size: 8\nimages:"))
    search = Search("p", tmp_path / "presets", measure_of("mse", ["mse"], installed()), Budget(4))
    for task in found:
        Tuning(task, search, installed()).run()
    assert set(spied.read_text().split()) == {"0/8", "0/9"}


def test_given_data_replace_those_of_the_suite(tmp_path, spied):
    found, _ = tasks(tmp_path, data=("spy:seed=7",), images="0:2")
    problems(found[0])
    assert set(spied.read_text().split()) == {"7/0", "7/1"}


def test_an_optional_grid_without_its_data_is_left_out(tmp_path):
    absent = "  - {solvers: other, operators: identity, data: nowhere.mrc, optional: data absent}\n"
    text = SUITE.replace("exclude:", absent + "exclude:")
    _, left_out = tasks(tmp_path, text)
    assert any(line.startswith("other: data absent (") for line in left_out)
    with pytest.raises(SuiteError, match=r"line 10: --data 'nowhere\.mrc'"):
        tasks(tmp_path, text.replace(", optional: data absent", ""))


def test_a_grid_without_its_plugin_is_left_out_and_named(tmp_path):
    grid = "  - {solvers: [swift, swifter], needs: no-such-plugin}\n"
    found, left_out = tasks(tmp_path, SUITE.replace("exclude:", grid + "exclude:"))
    assert "swift, swifter: no-such-plugin not installed" in left_out
    assert found


def test_a_suite_with_nothing_to_tune_is_refused(tmp_path):
    with pytest.raises(SuiteError, match="no solver to tune; pinv: nothing to tune"):
        tasks(tmp_path, "solvers: pinv\noperators: identity\ndata: spy\n")
