from __future__ import annotations

from pathlib import Path

import pytest
from sweeping import NAMES, STRANGE


@pytest.fixture
def strange(install_plugin, tmp_path, monkeypatch) -> Path:
    """Installs the solvers; the folder of their log."""
    folder = tmp_path / "strange"
    folder.mkdir()
    monkeypatch.setenv("STRANGE", str(folder))
    points = {name.lower(): f"strange_solvers:{name}" for name in NAMES}
    install_plugin("cryobench-strange", {"cryobench.solvers": points}, strange_solvers=STRANGE)
    return folder
