"""A new package can be installed, satisfies the contract of its kind, and its commands run."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cryobench.contract import CONTRACT
from cryobench.errors import ParameterError, ResultsError
from cryobench.registry import installed
from cryobench.scaffold import EXAMPLES, KINDS, create
from cryobench.testing import examine


def install(folder: Path, install_plugin) -> None:
    """Install a package of one module."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    module = next(folder.glob("cryobench_*.py"))
    install_plugin(project["name"], project["entry-points"], **{module.stem: module.read_text()})


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_component_satisfies_its_contract_and_its_command_runs(kind, install_plugin, tmp_path, cli):
    install(create(kind, "brand-new", tmp_path), install_plugin)
    results = list(examine(KINDS[kind], "brand_new"))
    assert {result.rule.name: result.why for result in results if result.status == "broken"} == {}
    assert any(result.status == "holds" for result in results)
    pyproject = tomllib.loads((tmp_path / "cryobench-brand-new" / "pyproject.toml").read_text())
    assert pyproject["project"]["entry-points"]["cryobench.contract"] == {str(CONTRACT): "cryobench_brand_new"}
    code, out, err = cli(*EXAMPLES[kind].format(name="brand_new").split()[1:])
    assert code == 0, err
    assert "brand_new" in out


@pytest.mark.slow
def test_generated_tests_fail_if_the_contract_is_broken(install_plugin, tmp_path):
    folder = create("solver", "cauchy", tmp_path)
    install(folder, install_plugin)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / "tests")]
    passed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert passed.returncode == 0, passed.stdout
    module = folder / "cryobench_cauchy.py"
    module.write_text(module.read_text().replace("Reconstruction(x)", "Reconstruction(x.float())"))
    install(folder, install_plugin)
    failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert failed.returncode == 1
    assert "cauchy: in 2-D: x is torch.float32 where y is torch.float64" in failed.stdout
    assert "make tensors with dtype=problem.y.dtype" in failed.stdout


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("solvr", "x", "did you mean 'solver'"),
        ("solver", "2x", "not a valid name"),
        ("solver", "Dct", "not a valid name"),
        ("solver", "class", "not a valid name"),
        ("solver", "../x", "not a valid name"),
        ("solver", "dct", "is already registered by cryobench"),
    ],
)
def test_invalid_kinds_and_names_are_refused(kind, name, message, tmp_path):
    with pytest.raises(ParameterError, match=message):
        create(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_overwritten_and_written_atomically(tmp_path, monkeypatch):
    (create("mask", "rows", tmp_path) / "mine").touch()
    with pytest.raises(ParameterError, match="already exists; remove it"):
        create("mask", "rows", tmp_path)
    with pytest.raises(ParameterError, match="is not a folder"):
        create("mask", "other", tmp_path / "nowhere")

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResultsError, match="cannot be written: No space left"):
        create("mask", "other", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cryobench-rows"]
    assert (tmp_path / "cryobench-rows" / "mine").exists()


def test_the_command_prints_the_next_steps(cli, tmp_path):
    code, out, _ = cli("new", "metric", "ncc", "--into", tmp_path)
    assert code == 0
    assert f"cryobench check {KINDS['metric']}/ncc" in out
    assert (tmp_path / "cryobench-ncc" / "cryobench_ncc.py").exists()
    assert "ncc" not in installed().names("metrics")
