"""The processes of a training run: one, or those started by `accelerate launch`. They stop together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from cryobench import environment
from cryobench.errors import DeviceError, TrainingError, reason_of
from cryobench.extras import of_extra

_TIMEOUT = timedelta(hours=2)
"""Maximum time that processes wait for each other: the first draws samples and writes files while others wait."""


class Processes:
    """This process among those of the run.

    device: the type of device, with its number if there is one process; several processes use one device each. Raises
    `DeviceError` if accelerate is configured for anything but data parallelism on such devices.
    """

    def __init__(self, device: torch.device):
        with of_extra("train"):
            from accelerate import Accelerator
            from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs

        cuda = device.type == "cuda"
        if cuda and "LOCAL_RANK" not in os.environ:
            torch.cuda.set_device(_own(device))
        # results must not depend on how accelerate is configured on this machine
        self.accelerator = Accelerator(
            cpu=not cuda,
            # float16 would need a scaled loss, whose scale would be part of the checkpoint
            mixed_precision="bf16" if cuda and environment.native_bfloat16(_own(device)) else "no",
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)],
        )
        self.device: torch.device = self.accelerator.device
        self.count: int = self.accelerator.num_processes
        self.index: int = self.accelerator.process_index
        self.main: bool = self.accelerator.is_main_process
        kind = self.accelerator.distributed_type
        if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            raise DeviceError(f"accelerate is configured for {kind.value}, but training supports data parallelism "
                              "only; see `accelerate config`")  # fmt: skip
        if self.device.type != device.type:
            raise DeviceError(f"--device is {device.type}, but accelerate was started for {self.device.type}; give "
                              "both the same")  # fmt: skip

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag if self.count == 1 else self.mean(torch.tensor(float(flag), device=self.device)) > 0

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a number over the processes, returned to all of them."""
        total: Any = self.accelerator.reduce(value.detach(), "mean")
        return float(total)

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """The values [n] of all processes, concatenated."""
        return self.accelerator.gather(values)  # pyright: ignore[reportReturnType]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of one process in all processes, so that none waits for a process that has ended."""
        if self.count == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if not self.any(failure is not None):
            return
        from accelerate.utils import gather_object

        reasons = gather_object([None if failure is None else reason_of(failure)])
        raise failure or TrainingError(next(reason for reason in reasons if reason))

    def end(self) -> None:
        """End the process group."""
        if self.count > 1:
            self.accelerator.end_training()


def _own(device: torch.device) -> torch.device:
    """The CUDA device of this process: that of its rank if accelerate started several."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
