"""What the files of the project state about its version, its contract and its checks is the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from cryobench.contract import CONTRACT

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_has_a_date_in_the_changelog_and_in_the_citation():
    releases = re.findall(r"^## (.*)$", text("CHANGELOG.md"), re.MULTILINE)
    assert releases[0] == "Unreleased"
    dates = dict(re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", release).groups() for release in releases[1:])
    assert next(iter(dates)) == PROJECT["version"]
    assert list(dates.values()) == sorted(dates.values(), reverse=True)
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == PROJECT["version"]
    assert citation["date-released"].isoformat() == dates[PROJECT["version"]]
    assert citation["license"] == PROJECT["license"]


def test_every_release_states_its_contract():
    contracts = dict(re.findall(r"^\| (\d+\.\d+) \| (\d+) \|$", text("CONTRIBUTING.md"), re.MULTILINE))
    assert contracts[PROJECT["version"].rpartition(".")[0]] == str(CONTRACT)
    for version, number in re.findall(r"^## (\d+\.\d+)\.\d+ .*\n\nContract (\d+)", text("CHANGELOG.md"), re.MULTILINE):
        assert contracts.pop(version) == number
    assert contracts == {}


def test_the_workflows_test_the_versions_of_python_that_the_project_states():
    jobs = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"]
    stated = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs["tests"]["strategy"]["matrix"]["python"] == stated
    assert PROJECT["requires-python"] == f">={stated[0]}"


def test_hooks_and_ci_run_the_same_linters():
    (repo,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    hooks = [hook["entry"] for hook in repo["hooks"]]
    (lint,) = re.findall(r"^lint\(\) \{\n(.*?)\n\}", text(".ci/common.sh"), re.MULTILINE | re.DOTALL)
    of_ci = [command.removesuffix(" --check .").removesuffix(" .") for command in lint.strip().split(" && ")]
    assert sorted(hooks) == sorted(of_ci)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_of_the_pages_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        path, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        assert (ROOT / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text(path or page), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target
    for path in re.findall(r"`((?:tests|tools|cryobench|\.ci|\.github)/[\w/.]*)`", text(page)):
        assert (ROOT / path).exists(), path
