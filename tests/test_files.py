"""Locks on files. Atomic writing is tested where files are written."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cryobench.errors import ResultsError
from cryobench.files import acquire_lock

HOLD = """
import time
from pathlib import Path
from cryobench.files import acquire_lock

with acquire_lock(Path("lock")):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_excludes_other_processes_and_ends_when_its_process_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ResultsError, match="another process holds it"):
        acquire_lock(tmp_path / "lock", busy="another process holds it")
    holder.kill()
    holder.wait(60)
    with acquire_lock(tmp_path / "lock", busy="another process holds it"):
        pass
    with acquire_lock(tmp_path / "lock"):
        pass


def test_a_failed_lock_gives_a_one_line_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match=r"cannot lock .*file/lock: .*; choose another") as error:
        acquire_lock(tmp_path / "file" / "lock")
    assert "\n" not in str(error.value)
