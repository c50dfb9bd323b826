"""Runs the `cryobench` command in forks of this process, which can be killed at any moment.

The caller imports what the command needs before the first fork, so that a trial takes a fraction of a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryobench import cli


def run(
    folder: Path, *arguments: str, prepare: Callable[[], None] | None = None, kill_after: float | None = None
) -> int:
    """Run `cryobench ARGUMENTS` in a folder, in a process group of its own, without output.

    prepare: called in the new process first. kill_after: seconds after which the whole group is killed. Returns the
    exit code, negative for a signal.
    """
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            os.chdir(folder)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
            if prepare is not None:
                prepare()
            sys.argv = ["cryobench", *arguments]
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
