"""What counts as the code of a component, and when its version is enough."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "toy/__init__.py": "import toy.unused\n",
    "toy/solver.py": '"""Docs."""\nfrom toy import helper\nfrom .deep.er import constant\nimport toy_flat, numpy\n',
    "toy/helper.py": "def double(x):\n    return 2 * x\n",
    "toy/unused.py": "x = 1\n",
    "toy/deep/__init__.py": "",
    "toy/deep/er.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import toy.typed\nconstant = 1\n",
    "toy/typed.py": "x = 1\n",
    "toy_flat.py": "def f():\n    import toy.late\n",
    "toy/late.py": "x = 1\n",
}


def installed(site: Path, *, origin: dict | None) -> None:
    """Write the distribution `toy` 1.0 to a folder, as an installer does."""
    info = site / "toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    lines = []
    if not (origin or {}).get("dir_info", {}).get("editable"):
        write(site)
        for name, content in FILES.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}")
    (info / "RECORD").write_text("\n".join([*lines, "toy-1.0.dist-info/RECORD,,"]) + "\n")


def write(root: Path) -> None:
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def digest(*paths: Path) -> str:
    """The digest of toy.solver in a process of its own, with these folders on the path; "None" for none."""
    code = (
        "import sys; from cryobench.source_code import code_digest; "
        "print(code_digest('toy.solver', 'toy'), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(map(str, paths))},
                          capture_output=True, text=True, check=True)  # fmt: skip
    found, imported = done.stdout.split()
    assert imported == "False", "finding the code imports nothing"
    return found


@pytest.fixture(params=["editable", "folder"])
def toy(request, tmp_path) -> tuple[Path, list[Path]]:
    """The folder of the code of an installation that is not from an index, and what is on the path."""
    site = tmp_path / "site-packages"
    if request.param == "folder":
        installed(site, origin={"url": "file:///home/me/toy", "dir_info": {}})
        return site, [site]
    source = tmp_path / "source"
    write(source)
    installed(site, origin={"url": source.as_uri(), "dir_info": {"editable": True}})
    return source, [site, source]


@pytest.mark.parametrize("name", ["toy/solver.py", "toy/helper.py", "toy/deep/er.py", "toy_flat.py", "toy/late.py"])
def test_an_edit_of_imported_code_changes_the_digest(toy, name):
    source, paths = toy
    before = digest(*paths)
    assert len(before) == 64
    with (source / name).open("a") as file:
        file.write("y = 2\n")
    assert digest(*paths) != before


def test_other_edits_do_not_change_the_digest(toy):
    source, paths = toy
    before = digest(*paths)
    (source / "toy/solver.py").write_text(
        '"""Other docs."""\n# a comment\n' + FILES["toy/solver.py"].partition("\n")[2]
    )
    (source / "toy/helper.py").write_text('def double(x):\n    """Docs."""\n    return 2*x\n')
    for name in ("toy/unused.py", "toy/typed.py", "toy/__init__.py"):
        (source / name).write_text("x = 2\n")
    assert digest(*paths) == before


def test_code_from_an_index_is_identified_by_its_version_until_it_is_edited(tmp_path):
    installed(tmp_path, origin=None)
    assert digest(tmp_path) == "None"
    (tmp_path / "toy/unused.py").write_text("x = 2\n")
    assert len(digest(tmp_path)) == 64


def test_a_module_without_a_file_has_no_digest(tmp_path):
    installed(tmp_path, origin={"url": "file:///toy", "dir_info": {}})
    (tmp_path / "toy/solver.py").unlink()
    assert digest(tmp_path) == "None"
