"""The hardware and software that produced a result."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from cryobench.errors import CryobenchError, DeviceError, described
from cryobench.extras import absent

NOT_INSTALLED = "not installed"
CORE_PACKAGES = ("torch", "numpy", "scipy", "diffusers", "PyWavelets", "scikit-image", "mrcfile", "lpips", "pandas")
EXTRAS = {
    "dask": (("distributed",), "--executor dask"),
    "diffusion": (("diffusers", "huggingface-hub"), "diffusion priors, their solvers, and files of the hub"),
    "fsim": (("piq",), "the metric fsim"),
    "movies": (("imagecodecs", "tifffile"), "movies in TIFF and EER files"),
    "perceptual": (("lpips",), "the metric lpips"),
    "proxtv": (("prox-tv",), "the prior tv with backend=proxtv"),
    "simulate": (("finufft", "gemmi"), "simulated particles, which the demo is, and structure files"),
    "slurm": (("dask-jobqueue", "distributed"), "--executor slurm"),
    "structure": (("finufft", "scikit-learn"), "maps of particles, and many structures"),
    "train": (("accelerate", "diffusers", "huggingface-hub"), "cryobench train"),
    "tune": (("optuna",), "cryobench tune"),
    "umap": (("umap-learn",), "cryobench analyse --umap"),
    "vit": (("timm",), "the encoder vit"),
    "volumes": (("imagecodecs", "tifffile", "zarr"), "images and volumes in TIFF and OME-Zarr files"),
}
"""The extras of the package but `all`, with the distributions of each and what they are needed for."""


class Missing(NamedTuple):
    """Something that is not on this machine, what needs it, and what to do."""

    what: str
    needed_for: str
    remedy: str


@cache
def version(distribution: str = "cryobench") -> str:
    """The installed version of a distribution, or `NOT_INSTALLED`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of the package and of its numerical libraries."""
    return {"python": platform.python_version(), "cryobench": version()} | {n: version(n) for n in CORE_PACKAGES}


def missing_extras() -> list[Missing]:
    """The extras of which a package is not installed."""
    found = []
    for extra, (packages, needed_for) in EXTRAS.items():
        absent = [package for package in packages if version(package) == NOT_INSTALLED]
        if absent:
            also = " (on Debian after liblapacke-dev)" if extra == "proxtv" else ""
            found.append(Missing(" and ".join(absent), needed_for, f"pip install 'cryobench[{extra}]'{also}"))
    return found


def missing_cuda() -> list[Missing]:
    """The CUDA device, if torch has none."""
    import torch

    if torch.cuda.device_count():
        return []
    if torch.version.cuda is None:
        remedy = "none of this machine can be used by this torch, a build without CUDA"
    else:
        remedy = f"torch, built for CUDA {torch.version.cuda}, finds none; `nvidia-smi` shows devices and driver"
    return [Missing("a CUDA device", "--device cuda; networks run on the processor", remedy)]


@cache
def hardware() -> dict[str, str | int]:
    """Processor, cores usable by this process, memory in MiB, threads of torch, and CUDA devices."""
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "torch_threads": torch.get_num_threads(),
    }
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        return platform.processor()
    return platform.processor()


@cache
def git_commit() -> str | None:
    """The commit of the current folder's git repository when first called, with '+' if tracked files were changed, or
    None."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + "+" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def resolve_device(name: str):
    """The torch device of a name: 'cpu', 'cuda', 'cuda:1', or 'auto' (CUDA if available).

    Raises `DeviceError` for a device that this machine does not have.
    """
    import torch

    cuda = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda:0" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}") from error
    if device.type == "cuda":
        if (device.index or 0) >= cuda:
            available = f"has {cuda} CUDA device(s)" if cuda else "has no CUDA device that torch can use"
            raise DeviceError(f"--device {name}: this machine {available}; use --device cpu")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise DeviceError(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}")
    return device


def native_bfloat16(device) -> bool:
    """Whether a CUDA `torch.device` computes in bfloat16; older ones emulate it."""
    import torch

    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def import_diffusers() -> ModuleType:
    """The diffusers package. Raises `CryobenchError`, with the usual reason, if it cannot be imported."""
    if version("diffusers") == NOT_INSTALLED:
        raise absent("diffusers", "diffusion")
    try:
        import diffusers.models  # the top level is lazy and would hide a broken torchvision
    except Exception as error:  # torch/torchvision mismatches surface as RuntimeError, OSError or ImportError
        raise CryobenchError(
            f"diffusers {version('diffusers')} cannot be imported with torch {version('torch')} and torchvision "
            f"{version('torchvision')}: torch and torchvision must be builds of one release (a CPU-only torch with "
            "the registry's torchvision is the usual cause); reinstall both together, as `uv sync` does "
            f"({described(error)[:160]})"
        ) from error
    return diffusers
