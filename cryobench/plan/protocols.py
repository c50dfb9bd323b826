"""Protocols: named choices of noise, scaling and metrics for images that come in two halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryobench.errors import ParameterError, quoted
from cryobench.io.scaling import MINMAX
from cryobench.registry import did_you_mean

if TYPE_CHECKING:
    from cryobench.plan.grid import Request

DEFAULT_METRICS = ("psnr", "ssim", "frc", "null_error", "range_error", "mse", "mae", "l2", "measurement_mse")
DEFAULT_NOISES = ("none",)


@dataclass(frozen=True)
class Protocol:
    """What a protocol states. by: the column that ranks. exclusive: whether other metrics are refused."""

    metrics: Sequence[str]
    by: str
    scaling: str = MINMAX
    exclusive: bool = False
    noises: Sequence[str] = ("own",)


PROTOCOLS = {
    "halves": Protocol(("psnr_other", "mse_other", "ssnr_other", "frc_other", "psnr", "ssim", "frc"), "psnr_other"),
    "p95": Protocol(("p95",), "p95_psnr_other", scaling="p95", exclusive=True),
}
"""halves: errors to the clean image, estimated from the other half. p95: the published protocol (`metrics.p95`), whose
numbers are no errors and never share a table with others."""


def protocol(name: str) -> Protocol:
    """The protocol of this name. Raises `ParameterError` for another name."""
    if name not in PROTOCOLS:
        raise ParameterError(f"--protocol {quoted(name)} is unknown; {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def expanded(request: Request) -> Request:
    """The request with the noise, scaling and metrics of its protocol, where it does not state others.

    Raises `ParameterError` for an unknown protocol, and for metrics or a scaling that it excludes.
    """
    if request.protocol is None:
        return request
    stated = protocol(request.protocol)
    if stated.exclusive:
        wrong = [("metric", metric) for metric in request.metrics if metric not in (*DEFAULT_METRICS, *stated.metrics)]
        wrong += [("scaling", request.scaling)] * (request.scaling not in (MINMAX, stated.scaling))
        for option, value in wrong:
            raise ParameterError(
                f"--protocol {request.protocol} states the {option} itself; leave out --{option} {value}"
            )
    return dataclasses.replace(
        request,
        noises=stated.noises if tuple(request.noises) == DEFAULT_NOISES else request.noises,
        metrics=stated.metrics if stated.exclusive or tuple(request.metrics) == DEFAULT_METRICS else request.metrics,
        scaling=stated.scaling if stated.scaling != MINMAX else request.scaling,
    )
