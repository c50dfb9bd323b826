"""Kill a process at a file event, to test what it leaves."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "tempfile.mkdtemp"}


def killed(write: Callable[[], None], root: Path, at: int) -> bool:
    """Call `write` in a forked process that is killed at the event number `at` below `root`. False: it ended before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in EVENTS and any(
                str(root) in os.fsdecode(a) for a in arguments if isinstance(a, str | os.PathLike)
            ):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            write()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
