"""Locks on files. That files appear whole is tested where they are written."""

from __future__ import annotations

import subprocess
import sys

from cryobench.files import exclusively

HOLD = """
import time
from pathlib import Path
from cryobench.files import exclusively

with exclusively(Path("lock")):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with exclusively(tmp_path / "lock", wait=False) as alone:
        assert not alone
    holder.kill()
    holder.wait(60)
    with exclusively(tmp_path / "lock", wait=False) as alone:
        assert alone
    assert not (tmp_path / "lock").exists()
