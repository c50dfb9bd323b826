"""Runs the commands of docs/plugins.md and docs/tutorial.md. `.ci/nightly` does so with pip in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "plugins.md": ("new solver steepest", "check steepest", "run --solver steepest", "list --problems", "pytest -q"),
    "tutorial.md": ("run --solver dct", "data simulate", "--data mine/particles.star", "measure", "reconstruct"),
}
"""The pages, and commands that must be among those that were run."""
PIP = """#!{python}
import sys, tomllib
from pathlib import Path
if sys.argv[1:3] != ["install", "-e"]:
    sys.exit(0 if sys.argv[1:] == ["install", "pytest"] else "no such command")
folder, site = Path(sys.argv[3]).resolve(), Path({site!r})
project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
info = site / (project["name"].replace("-", "_") + "-" + project["version"] + ".dist-info")
info.mkdir()
(info / "METADATA").write_text(f"Name: {{project['name']}}\\nVersion: {{project['version']}}\\n")
lines = []
for group, points in project["entry-points"].items():
    lines += [f"[{{group}}]", *(f"{{name}} = {{target}}" for name, target in points.items())]
(info / "entry_points.txt").write_text("\\n".join(lines) + "\\n")
for module in folder.glob("*.py"):
    (site / module.name).symlink_to(module)
"""


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_runs(page, tmp_path):
    """A substitute for pip links packages into a folder on sys.path, so that no network is needed."""
    commands, site = tmp_path / "bin", tmp_path / "site"
    commands.mkdir()
    site.mkdir()
    scripts = {"pip": PIP.format(python=sys.executable, site=str(site))}
    for name in ("cryobench", "pytest"):
        scripts[name] = f'#!/bin/sh\nexec {sys.executable} -m {name} "$@"\n'
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    paths = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "follow_page.py"), str(ROOT / "docs" / page)],
                          capture_output=True, text=True, env=os.environ | paths, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for command in PAGES[page]:
        assert command in done.stdout
