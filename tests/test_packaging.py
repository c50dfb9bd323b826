"""The dependencies of an installation. The one that compiles from source is optional."""

from __future__ import annotations

import tomllib
from importlib import import_module, metadata
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_prox_tv_is_optional():
    required = [line for line in metadata.requires("cryobench") or () if line.startswith("prox-tv")]
    assert required
    assert all("extra == 'proxtv'" in line.replace('"', "'") for line in required)


def test_every_entry_point_of_the_project_is_installed():
    for group, points in PROJECT["project"]["entry-points"].items():
        installed = {point.name for point in metadata.entry_points(group=group) if point.dist.name == "cryobench"}
        assert installed == set(points), f"reinstall the project: {group} is stale"


def test_every_dependency_is_pinned_for_development():
    pinned = {line.partition("==")[0] for line in PROJECT["tool"]["uv"]["constraint-dependencies"]}
    extras = PROJECT["project"]["optional-dependencies"].values()
    expected = [*PROJECT["project"]["dependencies"], *chain(*PROJECT["dependency-groups"].values()), *chain(*extras)]
    assert {line.partition(">")[0] for line in expected if not line.startswith("cryobench")} <= pinned


def test_env_knows_every_extra_and_its_packages():
    from cryobench.environment import EXTRAS

    stated = dict(PROJECT["project"]["optional-dependencies"])
    del stated["all"]
    assert {extra: list(packages) for extra, (packages, _) in EXTRAS.items()} == {
        extra: [line.partition(">")[0] for line in lines] for extra, lines in stated.items()
    }


def test_no_lock_file_is_tracked():
    assert "uv.lock" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.proxtv
def test_the_extra_solves_one_dimensional_total_variation():
    prox_tv = pytest.importorskip("prox_tv", reason="the extra proxtv is not installed")
    # two samples move towards each other by the weight, until they meet
    np.testing.assert_allclose(prox_tv.tv1_1d(np.array([0.0, 1.0]), 0.2), [0.2, 0.8], atol=1e-9)
    np.testing.assert_allclose(prox_tv.tv1_1d(np.array([0.0, 1.0]), 2.0), [0.5, 0.5], atol=1e-9)


def test_a_torchvision_that_does_not_match_torch_is_explained(monkeypatch):
    import sys

    from cryobench.environment import import_diffusers
    from cryobench.errors import CryobenchError

    assert import_diffusers() is import_module("diffusers")
    monkeypatch.setitem(sys.modules, "diffusers.models", None)  # importing it now raises
    with pytest.raises(CryobenchError, match="torch and torchvision must be builds of one release") as error:
        import_diffusers()
    assert "\n" not in str(error.value)
