"""Runs a command in a child process and reports when that process ends before the command does.

A plugin can end its process in ways that Python cannot intercept: `os._exit`, a segmentation fault, a signal. See
docs/adr/0015-a-parent-watches-commands.md. Imports only the standard library.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

THREADS_END = 30.0
"""Seconds for which threads of plugins may still run after the command."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_AWAITED = (*_FORWARDED, signal.SIGINT, signal.SIGCHLD)
_FIELD = 2048
"""Bytes of each of the texts that the child process leaves for its parent."""
_CELL, _KEPT = _FIELD, 2 * _FIELD
_memory: mmap.mmap | None = None
"""Shared by the two processes: the exit code plus 1, the running cell, and what is kept; None if nobody watches."""


def note_cell(text: str) -> None:
    """State which cell is run now."""
    _write(_CELL, text)


def note_kept(text: str) -> None:
    """State which results are saved."""
    _write(_KEPT, text)


def run_watched(command: Callable[[], None]) -> NoReturn:
    """Run a command in a child process and exit with its exit code; with 1 and a message if the process ended early.

    Ctrl-C in a terminal reaches both processes; other signals are passed on, and the child process ends with this one.
    """
    global _memory
    _memory = mmap.mmap(-1, 3 * _FIELD)
    lives, ends = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(ends)
        threading.Thread(target=_end_with_parent, args=(lives,), daemon=True).start()
        _run(command)
    os.close(lives)
    status, received = _awaited(child)
    if _memory[0]:
        os._exit(_memory[0] - 1)  # this process has nothing to finish
    if -status in received:
        signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.kill(os.getpid(), -status)
    how = f"killed by {_name(-status)}" if status < 0 else f"ended by itself with exit code {status}"
    cell, kept = _read(_CELL), _read(_KEPT)
    advice = "; leave out the plugin, or use `cryobench sweep --executor processes`, which then loses only its cell"
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which a progress bar has hidden
    sys.stderr.write(f"{cursor}error: the process was {how}" + (f" during {cell}" if cell else "")
                     + (f"; {kept}" if kept else "") + (advice if cell else "") + "\n")  # fmt: skip
    sys.exit(1)


def _awaited(child: int) -> tuple[int, list[int]]:
    """Wait for the child process and pass on signals. Returns its exit code, negative for a signal, and the signals."""
    received: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)  # an ignored signal is never received
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), received
        number, sent = _next_signal()
        if number != signal.SIGCHLD and (number != signal.SIGINT or sent):
            received.append(number)
            os.kill(child, number)


def _next_signal() -> tuple[int, bool]:
    """Wait for a signal. Returns its number, and whether a process sent it, to this process alone."""
    if hasattr(signal, "sigwaitinfo"):
        found = signal.sigwaitinfo(_AWAITED)
        return found.si_signo, found.si_code <= 0  # the code of a terminal is positive
    return signal.sigwait(_AWAITED), not sys.stdin.isatty()


def _run(command: Callable[[], None]) -> NoReturn:
    code = 1  # of an exception
    try:
        command()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        raise
    finally:
        assert _memory is not None
        _memory[0] = 1 + min(code & 0xFF, 0xFE)
        _end_threads(code)
    sys.exit(0)


def _end_threads(code: int) -> None:
    """End the process if threads of plugins do not: Python would wait for them forever."""
    deadline = time.monotonic() + THREADS_END
    others = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _end_with_parent(lives: int) -> None:
    os.read(lives, 1)  # returns when the parent, which alone has the other end, is gone
    os._exit(1)


def _write(place: int, text: str) -> None:
    if _memory is not None:
        _memory[place : place + _FIELD] = text.encode(errors="replace")[:_FIELD].ljust(_FIELD, b"\0")


def _read(place: int) -> str:
    assert _memory is not None
    return _memory[place : place + _FIELD].rstrip(b"\0").decode(errors="replace")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
