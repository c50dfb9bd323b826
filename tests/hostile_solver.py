"""A solver that misbehaves in the way that its parameter names, and an honest one that is sensitive to the traces."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
import builtins, ctypes, decimal, gc, locale, os, random, resource, signal, socket, sys, tempfile, threading, time
import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from cryobench.core import Reconstruction, Solver


print("imported")
torch.set_default_dtype(torch.float64)
np.seterr(all="raise")

def raising(make):
    def act(problem):
        raise make()
    return act


class Unreadable(Exception):
    def __str__(self): raise RuntimeError("no text")

class NoText(Exception):
    def __str__(self): return 7

class Base(BaseException): pass

class Meta(type):
    @property
    def __name__(cls): raise RuntimeError("no name")

class Nameless(Exception, metaclass=Meta): pass

class Mode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out + 1 if isinstance(out, torch.Tensor) and out.is_floating_point() else out


def forks(problem):
    if os.fork() == 0:
        with open(os.environ["HOSTILE"] + "/forked", "a") as file: file.write(str(os.getpid()))
    else:
        os.wait()

def closes_streams(problem):
    sys.stdout.close()
    sys.stderr.close()

def closes_descriptors(problem):
    os.close(1)
    os.close(2)

def prints(problem):
    print("from Python")
    print("past the redirection", file=sys.__stdout__)
    os.write(1, b"to the descriptor\\n")
    ctypes.CDLL(None).puts(b"from C")

def replaces(place, name, value):
    def act(problem): setattr(place, name, value)
    return act

def interrupts(problem):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD): signal.signal(number, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

def precise(problem):
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.benchmark = True
    torch.backends.mkldnn.enabled = False
    torch.set_float32_matmul_precision("medium")

def autocasts(problem):
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.bfloat16)

def seeds(problem):
    torch.manual_seed(1); np.random.seed(1); random.seed(1)

def tunes_python(problem):
    sys.setrecursionlimit(150); gc.disable(); sys.setswitchinterval(1.0); socket.setdefaulttimeout(0.001)
    decimal.getcontext().prec = 2; tempfile.tempdir = "/nowhere"; sys.excepthook = None

def thread(problem):
    threading.Thread(target=time.sleep, args=(600,)).start()

INFERENCE = []
def infers(problem):
    INFERENCE.append(torch.inference_mode())
    INFERENCE[0].__enter__()

WAYS = {
    # exceptions
    "unreadable": raising(Unreadable), "no_text": raising(NoText), "base": raising(Base),
    "generator_exit": raising(GeneratorExit), "system_exit": raising(lambda: SystemExit(0)),
    "nameless": raising(Nameless), "surrogate": raising(lambda: ValueError("a\\udcff")),
    "million": raising(lambda: ValueError("a" * 10**6)), "recursion": lambda problem: WAYS["recursion"](problem),
    "memory": raising(MemoryError), "stop": raising(StopIteration), "eof": raising(EOFError),
    "group": raising(lambda: BaseExceptionGroup("two", [Base(), Base()])),
    "surrogate_name": lambda problem: None,
    "operator_changed": lambda problem: problem.operator.matrices.zero_(),
    # traces
    "chdir": lambda problem: os.chdir("/"), "forks": forks, "prints": prints,
    "device": lambda problem: torch.set_default_device("meta"),
    "dtype": lambda problem: torch.set_default_dtype(torch.float64),
    "deterministic": lambda problem: torch.set_deterministic_debug_mode(2),
    "threads": lambda problem: torch.set_num_threads(3), "grad": lambda problem: torch.set_grad_enabled(False),
    "inference": infers, "autocast": autocasts, "precision": precise,
    "denormal": lambda problem: torch.set_flush_denormal(True), "mode": lambda problem: Mode().__enter__(),
    "seterr": lambda problem: np.seterr(all="raise"), "seeds": seeds, "signals": interrupts,
    "builtin": replaces(builtins, "len", lambda x: 0), "no_builtin": lambda problem: delattr(builtins, "isinstance"),
    "tensor": replaces(torch.Tensor, "sum", lambda *a, **k: 0), "fft": replaces(torch.fft, "fft2", None),
    "clock": replaces(time, "perf_counter", lambda: 0.0), "numpy": replaces(np, "stack", None),
    "environ": lambda problem: os.environ.clear(), "path": lambda problem: sys.path.clear(),
    "umask": lambda problem: os.umask(0o777), "closes": closes_streams, "descriptors": closes_descriptors,
    "limits": lambda problem: resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY)),
    "warnings": lambda problem: warnings.simplefilter("error"), "python": tunes_python,
    # only another process contains these
    "thread": thread, "exit_0": lambda problem: os._exit(0), "segfault": lambda problem: ctypes.string_at(0),
    "killed": lambda problem: os.kill(os.getpid(), signal.SIGKILL),
}


@dataclass(frozen=True)
class Hostile(Solver):
    """Misbehaves."""

    way: Annotated[str, "how"]

    def solve(self, problem, *, rng, progress=None):
        x = problem.operator.A_dagger(problem.y)
        WAYS[self.way](problem)
        info = {"a\\udcff": torch.zeros(len(x))} if self.way == "surrogate_name" else {}
        return Reconstruction(x, info)


@dataclass(frozen=True)
class Honest(Solver):
    """Random numbers, gradients, Fourier transforms, new tensors and files in the working directory."""

    number: int = 0

    def solve(self, problem, *, rng, progress=None):
        assert os.path.exists("here"), "another working directory"
        x = problem.operator.A_dagger(problem.y).requires_grad_()
        (gradient,) = torch.autograd.grad(torch.fft.fft2(x).abs().square().sum(), x)
        tiny = torch.tensor(1e-310, dtype=torch.float64) * 1e300 + np.float64(1e-310) * 1e300
        noise = rng.stream("x").normal(x.shape[1:]) + torch.rand(x.shape) + np.random.rand() + random.random()
        ones = torch.ones(len(x), 1, *x.shape[2:]) @ torch.ones(x.shape[-1], x.shape[-1])
        np.log(np.zeros(2))
        print("honest")
        with tempfile.TemporaryFile() as file: file.write(b"0" * 100)
        answer = x + 1e-6 * gradient + 0.01 * noise + tiny + self.number * 1e-4 * ones
        return Reconstruction(answer.detach().to(problem.y.dtype))
'''
FAILING = {
    "unreadable": "Unreadable: its message cannot be read, RuntimeError",
    "no_text": "NoText: its message cannot be read, TypeError",
    "base": "Base",
    "generator_exit": "GeneratorExit",
    "system_exit": "SystemExit: 0",
    "nameless": "Nameless",
    "surrogate": "ValueError: a\\udcff",
    "million": "ValueError: aaa",
    "recursion": "RecursionError",
    "memory": "MemoryError",
    "stop": "RuntimeError: generator raised StopIteration",
    "eof": "EOFError",
    "group": "BaseExceptionGroup: two (2 sub-exceptions)",
    "operator_changed": "the solver or a metric changed the operator",
}
"""The start of the reason, by way."""
LEAVING_TRACES = (
    *("chdir", "forks", "prints", "device", "dtype", "deterministic", "threads", "grad", "inference", "autocast"),
    *("precision", "denormal", "mode", "seterr", "seeds", "signals", "builtin", "no_builtin", "tensor", "fft", "clock"),
    *("numpy", "environ", "path", "umask", "closes", "descriptors", "limits", "warnings", "python"),
)


def install(install_plugin, folder: Path, monkeypatch) -> None:
    """Install the two solvers, and run in `folder`."""
    monkeypatch.setenv("HOSTILE", str(folder))
    monkeypatch.chdir(folder)
    (folder / "here").touch()
    points = {"hostile": "hostile_solvers:Hostile", "honest": "hostile_solvers:Honest"}
    install_plugin("cryobench-hostile", {"cryobench.solvers": points}, hostile_solvers=SOURCE)


def interleaved(ways) -> list[str]:
    """Each way, and an honest solver after it."""
    return [spec for number, way in enumerate(ways) for spec in (f"hostile:{way}", f"honest:{number}")]
