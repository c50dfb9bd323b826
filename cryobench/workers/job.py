"""A job as plain values, which runs in any process, and its limits. Imports no torch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryobench.errors import ParameterError

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
MIB = {"M": 1, "G": 1024}


@dataclass(frozen=True)
class Limits:
    """Limits of a job. seconds: wall time. mib: resident memory of the process that runs it."""

    seconds: float | None = None
    mib: float | None = None

    def __bool__(self) -> bool:
        return self.seconds is not None or self.mib is not None


class Stopped(Exception):
    """A job was stopped because it exceeded a limit, which the message names."""


@dataclass(frozen=True)
class Job(ABC):
    """Work for one worker. folder: the working directory, for relative paths. threads: of torch; None keeps the present
    number."""

    folder: str
    threads: int | None = None
    limits: Limits = Limits()

    @abstractmethod
    def prepare(self) -> None:
        """Do what does not count towards the time limit, such as reading data."""

    @abstractmethod
    def run(self) -> Any:
        """Do the work. Called in `folder`."""


def parse_limits(time: str | None, memory: str | None) -> Limits:
    """Limits such as "90", "10m" or "2h", and "500M" or "8G". Raises `ParameterError` for invalid text."""
    return Limits(
        None if time is None else _amount("--time-limit", time, SECONDS, "90, 10m or 2h"),
        None if memory is None else _amount("--memory-limit", memory, MIB, "500M or 8G"),
    )


def _amount(option: str, text: str, units: Mapping[str, float], examples: str) -> float:
    found = re.fullmatch(r"([0-9]+\.?[0-9]*)([a-zA-Z]?)", text)
    if found is None or found[2] not in units or float(found[1]) == 0:
        raise ParameterError(f"{option} must be like {examples}, got {text!r}")
    return float(found[1]) * units[found[2]]


def parse_shard(text: str) -> tuple[int, int]:
    """Index, from 1, and number of shards of a text such as "3/16". Raises `ParameterError` for invalid text."""
    found = re.fullmatch("([0-9]+)/([0-9]+)", text)
    part, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= of:
        raise ParameterError(f"--shard must be K/N with K from 1 to N, such as 3/16, got {text!r}")
    return part, of
