"""Figures of the reference: what a component does to a small image, made by the component itself.

    uv run python tools/site_figures.py solvers/hqs FOLDER

writes the pictures of one component and prints its caption. The examples are in `site_examples`. Runs of solvers are
kept in build/reference_runs, where their cells are found again while the code is the same.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from site_examples import (
    DENSITY,
    DEVIATION,
    EXAMPLES,
    MAP,
    NOISES,
    NOISY_PARTICLE,
    OPERATORS,
    PARTICLE,
    SIZE,
    SOLVERS,
    SOURCES,
    SPECTRUM,
    TISSUE,
    WITHOUT,
    Run,
)

import cryobench as cb
from cryobench.core import NoiseModel, Stack
from cryobench.core.components import FourierMask, PixelMask
from cryobench.core.scale import MINMAX
from cryobench.figures.style import DIVERGING
from cryobench.numerics.fft import whole_spectrum
from cryobench.priors.denoising import DenoisingPrior
from cryobench.priors.sparsity import Sparsity
from cryobench.record import Record
from cryobench.registry import installed
from cryobench.results.store import RECONSTRUCTIONS, Results
from cryobench.rng import Rng

RUNS = Path(__file__).resolve().parents[1] / "build" / "reference_runs"
WITHOUT_FIGURES = {"metrics", "objectives", "encoders"}
"""Kinds whose components make no image."""
MEASUREMENTS = 2
"""Measurements of one image that are shown, side by side."""
_STEPS = 15
"""Of a bisection."""


class FigureError(ValueError):
    """A component that cannot be shown as its example says."""


@dataclass(frozen=True)
class Picture:
    """An image, uint8 [H, W] or [H, W, 3], with its title in Markdown."""

    title: str
    pixels: np.ndarray

    def png(self) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, format="png", optimize=True)
        return file.getvalue()


@dataclass(frozen=True)
class Figure:
    """Pictures in a row, with a caption in Markdown and the command that makes them."""

    pictures: list[Picture]
    caption: str
    command: str

    def markdown(self, name: str) -> tuple[str, dict[str, bytes]]:
        """The figure on the page of a component, and its files by their names."""
        files = {f"{name}-{number}.png": picture.png() for number, picture in enumerate(self.pictures)}
        lines = ['<div class="pictures" markdown>', ""]
        for file, picture in zip(files, self.pictures, strict=True):
            alt = re.sub(r"[`\[\]]", "", f"{name}: {picture.title}")
            caption = f"<figcaption markdown>{picture.title}</figcaption>"
            lines += ["<figure markdown>", f"![{alt}]({file})", "", caption, "</figure>", ""]
        return "\n".join([*lines, "</div>", "", self.caption, "", "```sh", self.command, "```", ""]), files


def figure(kind: str, name: str) -> Figure | str | None:
    """The figure of a component; the reason, as Markdown, why it has none; or None for kinds without figures.

    Raises `FigureError` for a component without example, and where the example cannot be run.
    """
    if kind in WITHOUT_FIGURES:
        return None
    if (kind, name) in WITHOUT:
        return WITHOUT[kind, name]
    if name not in EXAMPLES.get(kind, [name]):
        raise FigureError(f"{kind}/{name} has no example; give it one in tools/site_examples.py")
    make: dict[str, Callable[[str], Figure]] = {
        "operators": _of_operator, "masks": _of_mask, "noises": _of_noise, "priors": _of_prior,
        "solvers": lambda name: _of_run(SOLVERS[name]), "sources": _of_source,
    }  # fmt: skip
    return make[kind](name)


# ------------------------------------------------------------------------------------------------- kinds of components


def _of_operator(name: str) -> Figure:
    spec, data = OPERATORS[name]
    x, pixel_size = _truth(data)
    if data == MAP:  # projections of a box of -1 would show its corners
        x = (x + 1) / 2
    limits = window(x)
    operator = cb.operator(spec, shape=tuple(x.shape[2:]), pixel_size=pixel_size)
    y = operator.A(x)
    volume, planes = x.ndim == 5, y[0]
    if volume and planes.ndim == 4:  # sections in the direction that is measured
        planes = planes[:, :, planes.shape[2] // 2]
    cut = _reslice if data == TISSUE else _plane
    pictures = [Picture("truth x", grey(cut(x), limits))]
    for number, plane in enumerate(planes[:MEASUREMENTS], start=1):
        title = f"measurement {number} of {len(planes)}" if len(planes) > 1 else "measurement y"
        pictures.append(Picture(title, grey(plane, None)))
    pictures.append(Picture("A⁺ y", grey(cut(operator.A_dagger(y)), limits)))
    transfer = getattr(operator, "transfer", None)
    if transfer is not None and not operator.identity:
        whole = torch.fft.fftshift(whole_spectrum(transfer, operator.image_shape), dim=(-2, -1))
        pictures.append(Picture("transfer function, −1 to 1", signed(whole[0, 0])))
    which = "Section z-x of the volume" if data == TISSUE else "Central section of the volume" if volume else "Image"
    return Figure(pictures, f"{which} of `{data}` through `{spec}`.", _by("operators", name))


def _of_mask(name: str) -> Figure:
    mask = installed().make("masks", name)
    if isinstance(mask, PixelMask):
        drawn = mask.draw(2, (SIZE, SIZE), 0)
        pictures = [Picture(f"mask {number}", grey(each, (min(0.0, float(drawn.min())), float(drawn.max()))))
                    for number, each in enumerate(drawn)]  # fmt: skip
        levels = ", from 0 (black) to 1" if drawn.min() >= 0 else ""
        return Figure(pictures, f"The first masks of {SIZE} x {SIZE} pixels{levels}.", _by("masks", name))
    assert isinstance(mask, FourierMask)
    pictures = [
        Picture(f"seed {seed}", grey(mask.draw(DENSITY, (SIZE, SIZE), seed).float(), (0, 1))) for seed in (0, 1)
    ]
    about = f"Kept coefficients (white) of {SIZE} x {SIZE}, zero frequency in the centre, `rho` = {DENSITY:g}."
    return Figure(pictures, about, _by("masks", name))


def _of_noise(name: str) -> Figure:
    spec = NOISES[name]
    noise = installed().make("noises", spec)
    assert isinstance(noise, NoiseModel)
    if noise.of_image:
        stack = _opened(NOISY_PARTICLE)
        pictures = [Picture("without noise", grey(stack.clean(0), None)), Picture("image", grey(stack.read(0), None))]
        return Figure(pictures, f"An image of `{NOISY_PARTICLE}`, as it is measured.", _by("noises", name))
    x, _ = _truth(PARTICLE)
    noisy = noise.apply(x, cb.operator("identity", shape=(SIZE, SIZE)), MINMAX, Rng(0, ["0"])).y
    limits = window(x)
    pictures = [
        Picture("y without noise", grey(_plane(x), limits)),
        Picture(f"y with `{spec}`", grey(_plane(noisy), limits)),
    ]
    return Figure(pictures, f"Image of `{PARTICLE}` through `identity`.", _by("noises", name))


def _of_prior(name: str) -> Figure:
    if name == "cross_spectrum":
        return _of_run(SPECTRUM)
    if name == "denoiser":
        return _of_run(SOLVERS["n2n"])
    prior = installed().make("priors", name)
    data = name if name in SOURCES else PARTICLE if 2 in prior.dims else MAP
    own = isinstance(prior, DenoisingPrior) and prior.in_units_of_file
    x = torch.from_numpy(_opened(data).read(0))[None, None] if own else _truth(data)[0]
    limits = window(x)
    deviation = float(x.std()) if own else DEVIATION
    z = x + deviation * Rng(0, ["0"]).stream("figure").normal(x.shape[1:], dtype=x.dtype)
    if isinstance(prior, DenoisingPrior):
        with torch.no_grad():
            found, how = prior.load().denoise(z, deviation), "E[x &#124; z]"
    elif isinstance(prior, Sparsity):
        found = _proximal(prior, z, deviation)
        how = "the minimiser of ½‖x − z‖² + t R(x), with the t at which ‖x − z‖ is the norm of the noise"
    else:
        raise FigureError(f"priors/{name} is neither a denoiser nor a norm; show it by a run in tools/site_examples.py")
    pictures = [Picture("truth x", grey(_plane(x), limits)), Picture("noisy z", grey(_plane(z), limits)),
                Picture("denoised", grey(_plane(found), limits))]  # fmt: skip
    return Figure(
        pictures,
        f"Image of `{data}` with white noise of deviation {deviation:.2g}, and {how}.",
        _by("priors", name),
    )


def _of_source(name: str) -> Figure:
    spec = SOURCES[name]
    stack = _opened(spec)
    known = stack.clean(0)
    has_clean = known is not None and not np.array_equal(known, stack.read(0))
    count = min(2 if has_clean else 4, len(stack))
    pictures = []
    for index in range(count):
        pictures.append(Picture(f"image {index}", grey(_section(stack.read(index)), None)))
        if has_clean:
            pictures.append(Picture("without noise", grey(_section(np.asarray(stack.clean(index))), None)))
    more = ", and with `--clean` those without noise" if has_clean else ""
    volume = " The central sections are shown." if len(stack.shape) == 3 else ""
    return Figure(
        pictures,
        f"The first images of `{spec}`{more}.{volume}",
        f"cryobench data info {spec} --sheet sheet.png --images 0:{count}",
    )


def _of_run(run: Run) -> Figure:
    """Truth, floor and result of a run of a solver, of the first two images of many; of noisy images no floor."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        records = cb.run(
            run.solver,
            run.operator,
            noises=run.noise,
            data=run.data,
            images=f"0:{run.images}",
            scaling=run.scaling,
            out=RUNS,
            save=["reconstructions"],
        )
    for record in records:
        if record.status != "ok":
            raise FigureError(f"{run.command()}: {record.reason}")
    stack = _opened(run.data)
    ours = next((record for record in records if not record.floor), records[0])  # the floor itself has one record
    noisy, many = run.noise == "own", run.images > 1
    pictures = []
    for index in range(min(2, run.images)):
        image = stack.read(index)
        limits = None if noisy or many else window(image)  # of much noise: each picture has its own
        title = "image" if noisy else "truth"
        pictures.append(Picture(f"{title} {index}" if many else title, grey(_section(image), limits)))
        for record in [ours] if noisy else sorted(records, key=lambda record: record is ours):
            title = f"{'' if record is ours else 'floor '}`{record.solver.partition(':')[0]}`{_quality(record, index)}"
            pictures.append(Picture(title, grey(_section(_reconstruction(record, index, image.ndim)), limits)))
    about = [f"`{run.solver}` on `{run.operator}`, noise `{run.noise}`, images of `{run.data}`."]
    about += ["Projections of what was found, in the poses of the images."] if many else []
    about += ["The central sections are shown."] if len(stack.shape) == 3 else []
    about += [run.note] if run.note else []
    about += [f"{text[0].upper()}{text[1:]}." for text in sorted({str(each.message) for each in noted})
              if "trained on" in text]  # fmt: skip
    return Figure(pictures, " ".join(about), run.command())


# -------------------------------------------------------------------------------------------------------------- parts


def window(image: Any) -> tuple[float, float]:
    """The intensities that are black and white: the 0.5th and 99.5th percentile."""
    low, high = np.percentile(np.asarray(image, dtype=float), (0.5, 99.5))
    return float(low), float(high)


def grey(image: Any, limits: tuple[float, float] | None) -> np.ndarray:
    """An image [H, W] as uint8 with these intensities black and white; None: those of its own `window`."""
    values = np.asarray(image, dtype=float)
    low, high = window(values) if limits is None else limits
    levels = (values - low) / ((high - low) or 1.0)
    return np.round(255 * levels.clip(0, 1)).astype(np.uint8)


def signed(image: Any) -> np.ndarray:
    """An image [H, W] of values between -1 and 1 in two colours, uint8 [H, W, 3]."""
    colours = matplotlib.colormaps[DIVERGING]((np.asarray(image, dtype=float).clip(-1, 1) + 1) / 2)
    return np.round(255 * colours[..., :3]).astype(np.uint8)


def _by(kind: str, name: str) -> str:
    """The command that writes the pictures of a component."""
    return f"uv run python tools/site_figures.py {kind}/{name} FOLDER"


def _opened(spec: str) -> Stack:
    return installed().make("sources", spec).open()


def _truth(data: str) -> tuple[torch.Tensor, float | None]:
    """Image 0 of a source, [1, 1, *S], scaled to [-1, 1], and its pixel size."""
    stack = _opened(data)
    image = torch.from_numpy(stack.read(0).astype(np.float32))
    low, high = image.min(), image.max()
    return (2 * (image - low) / (high - low) - 1)[None, None], stack.pixel_size(0)


def _plane(x: torch.Tensor) -> np.ndarray:
    """The first image of [1, 1, *S], the central section of a volume."""
    return _section(x[0, 0].detach().numpy())


def _section(image: np.ndarray) -> np.ndarray:
    return image[len(image) // 2] if image.ndim == 3 else image


def _reslice(x: torch.Tensor) -> np.ndarray:
    """The plane z-x in the middle of a volume [1, 1, D, H, W]."""
    return x[0, 0, :, x.shape[3] // 2].numpy()


def _proximal(prior: Sparsity, z: torch.Tensor, deviation: float) -> torch.Tensor:
    """The proximal step of a norm whose distance from z is the norm of white noise of this deviation."""
    low, high, found = 0.0, 10.0, z
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = prior.prox(z, torch.full((1, 1, 1, 1), middle))
        low, high = (middle, high) if float((found - z).square().mean().sqrt()) < deviation else (low, middle)
    return found


def _reconstruction(record: Record, index: int, axes: int) -> np.ndarray:
    folder = Results(RUNS).find(record.hash)
    if folder is None:
        raise FigureError(f"the cell of {record.solver} is not in {RUNS}; remove this folder")
    kind = "volume" if axes == 3 else "file"
    return _opened(f"{kind}:{folder / RECONSTRUCTIONS}").read(index)


def _quality(record: Record, index: int) -> str:
    """The PSNR of an image where it has one."""
    value = record.values.get("psnr", [])
    return f", {value[index]:.1f} dB" if index < len(value) and np.isfinite(value[index]) else ""


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2 or "/" not in arguments[0]:
        print("give a component, as solvers/hqs, and a folder", file=sys.stderr)
        return 2
    kind, _, name = arguments[0].partition("/")
    made = figure(kind, name)
    if not isinstance(made, Figure):
        print(made or f"{kind} have no figures")
        return 1
    folder = Path(arguments[1])
    folder.mkdir(parents=True, exist_ok=True)
    text, files = made.markdown(name)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
