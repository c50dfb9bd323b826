"""`cryobench train`: a network from images, a diffusion prior or a denoiser."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from cryobench.cli.options import DeviceOption, QuietOption, complete

if TYPE_CHECKING:
    from cryobench.training.processes import Processes


def train(
    data: Annotated[
        list[str], typer.Option("--data", "-d", help="An image file or a source spec, such as simulate:train,snr=2,"
                                "count=1000000. Repeat for more; images are taken from them in turn.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the model. A run in it continues from its checkpoint.")],
    objective: Annotated[
        str, typer.Option(help="What is trained: ddpm, a diffusion prior; noise2noise, a denoiser from micrographs in "
                          "two halves; supervised, a denoiser from images with their truth; conditional, diffusion "
                          "given a noisy image or two sections of a volume; regression, its control; or a plugin's.",
                          autocompletion=complete("objectives"))
    ] = "ddpm",
    validation: Annotated[
        list[str] | None, typer.Option(help="Images for the validation loss, of other particles. Repeat for more.",
                                       show_default=False)
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Network. ddpm: tiny, small, medium, cryosense-128 or cryosense-256; noise2noise "
                                 "and supervised: tiny, small or published; conditional and regression: tiny or "
                                 "published.",
                                 show_default="small for ddpm, else tiny")
    ] = None,
    patch: Annotated[
        int | None, typer.Option(help="Side of the patches, pixels; not of ddpm.", show_default="256")
    ] = None,
    warm_start: Annotated[
        str, typer.Option(help="Model to start from, of the same network: a folder; for ddpm also embedded or "
                          "hf:OWNER/NAME.",
                          show_default="random weights")
    ] = "",
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Images or patches per step, over all processes.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-4,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up of the learning rate.")] = 500,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights, which are the result.")] = 0.999,
    clip: Annotated[float, typer.Option(help="Maximum norm of the gradient.")] = 1.0,
    turns: Annotated[
        bool | None, typer.Option("--turns/--no-turns", help="Rotate by 90° and flip images at random.",
                                  show_default="turns")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Of ddpm. images: noisy images; clean: clean images, if the source has them.",
                                 show_default="images")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Noise levels of ddpm: uniform in t, or mixed, half of them in log sigma.",
                                 show_default="uniform")
    ] = None,
    preload: Annotated[
        str, typer.Option(metavar="auto|none|ram|device", help="Where the training data are kept. none: read when "
                          "needed, ahead of the training; ram: all in memory; device: all on the device. The result is "
                          "the same.")
    ] = "auto",
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Compute in bfloat16 on a CPU too, with other rounding: faster on "
                           "processors with instructions for it. CUDA devices that have bfloat16 always use it.")
    ] = False,
    patience: Annotated[
        int, typer.Option(help="Stop when the validation loss has not decreased for this many steps; 0: never.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, images, noise and rotations.")] = 0,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 500,
    sample_every: Annotated[int, typer.Option(help="Steps between sheets of samples.")] = 2000,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
    preset: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:  # fmt: skip
    """Train a network: a diffusion prior, for solvers to use as prior=./FOLDER, or a denoiser, for n2n:model=./FOLDER.

    A run can be stopped at any time: the same command continues from the last checkpoint. On several GPUs run
    `accelerate launch -m cryobench train ... --device cuda`.

    Example: cryobench train -d particles.star --validation others.star --network cryosense-128 --out prior
    """
    from cryobench.cli.output import note
    from cryobench.cli.progress import TrainingProgress
    from cryobench.environment import resolve_device
    from cryobench.errors import CryobenchError, ParameterError
    from cryobench.plan.dataset import open_stack
    from cryobench.registry import installed
    from cryobench.training.loop import Training
    from cryobench.training.processes import Processes
    from cryobench.training.settings import Settings

    processes = Processes(resolve_device(device))
    with _reported_once(processes), processes.together():
        if preset is not None:
            raise ParameterError(f"--preset is now called --network; give --network {preset}")
        given = {"network": network, "patch": patch, "turns": turns, "target": target, "levels": levels}
        settings = Settings(
            data=tuple(data), validation=tuple(validation or ()), objective=_with(objective, given),
            warm_start=warm_start, steps=steps, batch=batch, lr=lr, warmup=warmup, ema=ema, clip=clip,
            patience=patience, seed=seed, validate_every=validate_every, sample_every=sample_every,
            checkpoint_every=checkpoint_every, preload=preload, bfloat16=bfloat16,
        )  # fmt: skip
        stacks, others = ([open_stack(text, {}, installed(), processes.device) for text in texts]
                          for texts in (settings.data, settings.validation))  # fmt: skip
    verbose = processes.main and not quiet
    continues = f"the same command continues from the last checkpoint in {out}"
    with TrainingProgress(not verbose) as observer, StopSignals(processes.main) as signals:
        with _reported_once(processes):
            training = Training(settings, stacks, others, out, device=processes.device, observer=observer)
        try:
            finished = training.run(lambda: signals.received is not None)
        except KeyboardInterrupt:
            if processes.main:
                note(f"\nstopped; {continues}")
            raise typer.Exit(128 + signal.SIGINT) from None
        except CryobenchError as error:  # the run had started, so the request was valid
            if processes.main:
                note(f"error: {error}")
            raise typer.Exit(1) from error
        finally:
            processes.end()
    if not finished:
        if processes.main:
            note(f"stopped after step {training.step} of {steps}; {continues}")
        raise typer.Exit(128 + (signals.received or signal.SIGTERM))  # the signal may have been sent to another process
    if verbose:
        path = out if len(out.parts) > 1 else f"./{out}"  # a bare word would be read as the name of a prior
        note(f"the model is in {out}; {training.objective.usage.format(path)}")


def _with(objective: str, given: Mapping[str, object]) -> str:
    """The spec of an objective with the parameters that were given as options.

    Raises `SpecError` for an option that the objective does not have.
    """
    from cryobench.errors import SpecError
    from cryobench.registry import installed
    from cryobench.spec import fields_of, parse

    spec = parse(objective)
    options = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()
               if value is not None}  # fmt: skip
    known = {field.name for field in fields_of(installed().get("objectives", spec.name))}
    for name in options:
        if name not in known:
            raise SpecError(f"--{name} does not apply to the objective {spec.name!r}")
    return str(replace(spec, params=(*spec.params, *options.items())))


class StopSignals:
    """A context in which the first Ctrl-C or SIGTERM requests a stop and the second has its usual effect.

    received: the number of the signal, None before one. verbose: whether to confirm the signal on stderr.
    """

    def __init__(self, verbose: bool):
        self.received: int | None = None
        self._verbose = verbose

    def __enter__(self) -> StopSignals:
        handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._former = {number: signal.signal(number, self._receive) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()
        if self._verbose:  # unbuffered: Python's buffers are not reentrant in a signal handler
            os.write(2, b"\nfinishing this step and writing a checkpoint; a second signal stops at once\n")


@contextmanager
def _reported_once(processes: Processes) -> Iterator[None]:
    """Let only the first process report an error that all processes raise."""
    from cryobench.errors import CryobenchError

    try:
        yield
    except CryobenchError as error:
        if processes.main:
            raise
        raise typer.Exit(2) from error
