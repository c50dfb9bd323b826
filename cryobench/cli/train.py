"""`cryobench train`: a diffusion prior from images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryobench.cli.options import DeviceOption, QuietOption


def train(
    data: Annotated[
        list[str], typer.Option("--data", "-d", help="An image file or a source spec, such as simulate:train,snr=2,"
                                "count=1000000. Repeat for more: images are taken from them in turn.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the prior. A run found there goes on where it was.")],
    validation: Annotated[
        list[str] | None, typer.Option(help="Images for the validation loss, of other particles. Repeat for more.",
                                       show_default=False)
    ] = None,
    preset: Annotated[str, typer.Option(help="The network: tiny, small, cryosense-128 or cryosense-256.")] = "small",
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Images a step, over all processes.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 3e-4,
    warmup: Annotated[int, typer.Option(help="Steps until the learning rate is at its peak.")] = 500,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights, which are what is kept.")] = 0.999,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    turns: Annotated[bool, typer.Option("--turns/--no-turns", help="Turn and flip images at random.")] = True,
    patience: Annotated[
        int, typer.Option(help="Stop once the validation loss has not fallen for so many steps; 0: never.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of weights, images, noise and turns.")] = 0,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 500,
    sample_every: Annotated[int, typer.Option(help="Steps between sheets of samples.")] = 2000,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:  # fmt: skip
    """Train an unconditional DDPM, which solvers then take as prior=FOLDER.

    Stop it at any time: the same command goes on from the last checkpoint. On several GPUs run it as
    `accelerate launch -m cryobench train ... --device cuda`.

    Example: cryobench train -d particles.star --validation others.star --preset cryosense-128 --out prior
    """
    from cryobench import grid
    from cryobench.cli.output import note
    from cryobench.cli.progress import TrainingObserver
    from cryobench.environment import resolve_device
    from cryobench.registry import installed
    from cryobench.training.loop import train
    from cryobench.training.settings import Settings

    settings = Settings(
        data=tuple(data), validation=tuple(validation or ()), preset=preset, steps=steps, batch=batch, lr=lr,
        warmup=warmup, ema=ema, clip=clip, turns=turns, patience=patience, seed=seed, validate_every=validate_every,
        sample_every=sample_every, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    where = resolve_device(device)
    stacks, others = ([grid.open_stack(text, {}, installed(), where) for text in texts]
                      for texts in (settings.data, settings.validation))  # fmt: skip
    with TrainingObserver(quiet) as observer:
        try:
            train(settings, stacks, others, out, device=where, observer=observer)
        except KeyboardInterrupt:
            note(f"\nstopped; the same command goes on from the last checkpoint in {out}")
            raise typer.Exit(130) from None
    if not quiet:
        note(f"the prior is in {out}; use it as prior={out}")
