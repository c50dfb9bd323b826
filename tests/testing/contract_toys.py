"""A plugin of each kind that satisfies its contract; with `broken` it breaks the rule of that name."""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, field

import numpy as np
import torch

from cryobench.core import (
    Column,
    Crop,
    Encoder,
    FourierMask,
    Gathering,
    JointMetric,
    LinearOperator,
    Measured,
    MeasuredTogether,
    Metric,
    NoiseModel,
    Noisy,
    Objective,
    OperatorRecipe,
    PixelMask,
    Prior,
    Reconstruction,
    Samples,
    Solver,
    Source,
    Stack,
    checked_window,
)
from cryobench.errors import DataError, IncompatibleError
from cryobench.priors.dct import DctSparsity
from cryobench.priors.diffusion import Diffusion
from cryobench.rng import generator
from cryobench.training.examples import StackExamples
from cryobench.training.export import write_weights


@dataclass(frozen=True)
class ToySolver(Solver):
    """The least-norm solution, with a little noise."""

    dims = (2, 3)

    broken: str = ""

    def solve(self, problem, *, rng, progress=None):
        x = problem.operator.A_dagger(problem.y)
        x = x + 1e-3 * rng.stream("x").normal(x.shape[1:], dtype=x.dtype, device=x.device)
        for step in range(3):
            if progress is not None:
                progress(*((3 - step, 2) if self.broken == "progress" else (step + 1, 3)))
        match self.broken:
            case "shape":
                x = x[..., :-1]
            case "dtype":
                x = x.float()
            case "device":
                x = x.to("meta")
            case "finite":
                x[:, :, 0, 0] = torch.nan
            case "planar" if x.ndim == 5:
                x = -x
            case "seeded":
                x = x + 1e-7 * int.from_bytes(os.urandom(1), "little")
            case "global_state":
                random.random()
            case "inputs":
                problem.y.add_(1)
            case "alone":
                x = x - 0.1 * x.mean()
            case "residual":
                x = -x
            case "unsupported":
                if problem.operator.noise_in_range:
                    raise RuntimeError("no Fourier operators")
        return Reconstruction(x)

    def unsupported(self, problem):
        return {"reason": "", "accepts": "it is out of order"}.get(self.broken)


@dataclass(frozen=True)
class Uninterruptible(Solver):
    """Ignores interrupts."""

    def solve(self, problem, *, rng, progress=None):
        while True:
            try:
                return Reconstruction(problem.operator.A_dagger(problem.y))
            except BaseException:
                continue


@dataclass
class NotFrozen(Solver):
    """A dataclass that is not frozen."""

    def solve(self, problem, *, rng, progress=None):
        return Reconstruction(problem.operator.A_dagger(problem.y))


@dataclass(frozen=True)
class Growing(ToySolver):
    """Increases `steps` whenever it is made from its spec."""

    steps: int = 1

    def __post_init__(self):
        object.__setattr__(self, "steps", self.steps + 1)


@dataclass(frozen=True)
class Unpicklable(ToySolver):
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError("it holds an open file")


@dataclass(frozen=True)
class Flatland(ToySolver):
    """States an invalid number of axes."""

    dims = (2, 4)


@dataclass(frozen=True)
class Silent(ToySolver):
    pass


@dataclass(frozen=True)
class NoSolver(Prior):
    """Registered under the wrong kind."""


class ToyOperator(LinearOperator):
    """Every 2 x 2 pixels summed, with random weights."""

    nonnegative = True
    closed_form = True

    def __init__(self, shape, weights, dtype, device, broken):
        self.image_shape, self.dtype, self.device, self.broken = shape, dtype, device, broken
        self.measurement_shape = (1, shape[0] // 2, shape[1] // 2)
        self.nominal_compression = 4.0
        self.weights = weights.to(device, dtype)
        if broken == "nonnegative":
            self.weights[0, 0] = -1
        if broken == "global_state":
            torch.rand(1)

    def A(self, x):
        match self.broken:
            case "linear":
                x = x.abs()
            case "gradient":
                x = x.detach() * x.sum().detach().clamp(1, 1).requires_grad_(x.requires_grad)
            case "alone":
                x = x + 1e-3 * x.mean(dim=0, keepdim=True)
            case "inputs":
                x.mul_(1.5)
        y = 4 * torch.nn.functional.avg_pool2d(self.weights * x, 2)
        if self.broken == "dtype":
            return y.float()
        return y[:, :, :-1] if self.broken == "shapes" else y

    def A_adjoint(self, y):
        x = self.weights * y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return 2 * x if self.broken == "adjoint" else x

    def A_adjoint_A(self, x):
        return super().A_adjoint_A(x) * (2 if self.broken == "normal" else 1)

    def A_dagger(self, y):
        x = self.A_adjoint(y / (4 * torch.nn.functional.avg_pool2d(self.weights[None] ** 2, 2)))
        return x + (self.broken == "dagger")

    def A_dagger_A(self, x, gamma=torch.inf):
        return super().A_dagger_A(x, 2 * gamma if self.broken == "dagger_A" else gamma)

    def prox_l2(self, z, y, gamma):
        return super().prox_l2(z, y, gamma * gamma if self.broken == "prox" else gamma)

    def compute_norm(self):
        norm = (4 * torch.nn.functional.avg_pool2d(self.weights[None] ** 2, 2)).max().sqrt().item()
        return norm**2 if self.broken == "norm" else norm

    def rows(self, part):
        rows = super().rows(part)
        if self.broken == "rows":
            rows.A_adjoint = lambda y: 2 * self.A_adjoint(y)
        return rows

    crop_step = 2

    def crop(self, window):
        rows, columns = checked_window(self, window)
        weights, shape = self.weights[rows, columns], (rows.stop - rows.start, columns.stop - columns.start)
        moved = 2 if self.broken == "crop" and rows.start else 0
        measured = tuple(slice((part.start - moved) // 2, (part.stop - moved) // 2) for part in (rows, columns))
        whole = ToyOperator(shape, weights, self.dtype, self.device, "")
        return Crop(whole, (slice(None), *measured))

    @property
    def rank(self):
        return super().rank - (self.broken == "rank")

    @property
    def mean_response(self):
        ones = torch.ones((1, 1, *self.image_shape), dtype=self.dtype, device=self.device)
        return self.A(ones) + (self.broken == "mean_response")


@dataclass(frozen=True)
class Toy(OperatorRecipe):
    """Weighted sums of 2 x 2 pixels."""

    broken: str = ""

    def check(self, imaging):
        H, W = imaging.shape
        if self.broken == "accepts" or ((H % 2 or W % 2) and self.broken != "check"):
            raise IncompatibleError(f"even sides are required, got {imaging.shape}")
        return (1, H // 2, W // 2)

    def draw(self, imaging, seed):
        g = _clock() if self.broken == "seeded" else torch.Generator().manual_seed(seed)
        return {"weights": 1 + torch.rand(imaging.shape, generator=g, dtype=torch.float64)}

    def build(self, imaging, drawn, *, dtype, device):
        if imaging.shape[0] % 2:
            raise ValueError("an odd side")
        return ToyOperator(imaging.shape, drawn["weights"], dtype, device, self.broken)


def _clock():
    """A generator with a random seed."""
    g = torch.Generator()
    g.seed()
    return g


@dataclass(frozen=True)
class ToyMask(PixelMask):
    """Random pixels between 0 and 1."""

    dims = (2, 3)

    broken: str = ""

    def draw(self, count, shape, seed):
        if self.broken == "accepts":
            raise IncompatibleError("it is out of order")
        if self.broken == "seeded":
            return torch.rand((count, *shape), generator=_clock())
        if self.broken == "global_state":
            np.random.rand()
        masks = [torch.rand(shape, generator=generator(seed, self, shape, i)) for i in range(count)]
        if self.broken == "prefix":
            masks.reverse()
        masks = torch.stack(masks)
        if self.broken == "nonnegative":
            masks = masks - 0.5
        return masks.double() if self.broken == "shape" else masks


@dataclass(frozen=True)
class ToyFourierMask(FourierMask):
    """Random coefficients."""

    dims = (2, 3)

    broken: str = ""

    def draw(self, rho, shape, seed):
        return torch.rand(shape, generator=generator(seed, shape)) < (1.5 * rho if self.broken == "fraction" else rho)


@dataclass(frozen=True)
class ToyNoise(NoiseModel):
    """White noise of deviation 0.1."""

    dims = (2, 3)

    broken: str = ""

    def unsupported(self, operator, scale):
        return "it is out of order" if self.broken == "accepts" else None

    def apply(self, y, operator, scale, rng):
        if self.broken == "seeded":
            return Noisy(y + 0.1 * torch.randn(y.shape, generator=_clock()), _sigma(y, 0.1))
        if self.broken == "global_state":
            torch.set_num_threads(torch.get_num_threads() + 1)
        noise = 0.1 * rng.stream("n").normal(y.shape[1:])
        if self.broken == "alone":
            noise = noise.flip(0)
        if self.broken == "inputs":
            y += 0.01 * noise
        return Noisy(y + noise, _sigma(y, 0.1 if self.broken != "deviation" else 0.01, self.broken))


def _sigma(y, sigma, broken=""):
    return torch.full((len(y), *[1] * (y.ndim - 1 - (broken == "shape"))), sigma)


@dataclass(frozen=True)
class ToyPrior(DctSparsity):
    """Sparse in the DCT, like the built-in prior."""

    broken: str = ""

    def check(self, shape):
        if self.broken == "checks":
            raise DataError("it was for images of 100 pixels")
        super().check(shape)

    def prepare(self, device):
        if self.broken == "prepares":
            torch.rand(1)

    def weights_digest(self):
        return os.urandom(4).hex() if self.broken == "digest" else ""

    def trained_on(self):
        return ["6zu5"] if self.broken == "trained_on" else []

    def adjoint(self, u):
        return super().adjoint(u) * (2 if self.broken == "adjoint" else 1)

    def prox(self, z, threshold):
        return super().prox(z, 2 * threshold if self.broken == "prox" else threshold)

    def analysis(self, x):
        return super().analysis(x) * (2 if self.broken == "norm_bound" else 1)


class ToyModel:
    def __init__(self, broken):
        self.broken = broken

    def denoise(self, z, sigma):
        blurred = torch.lerp(z, torch.nn.functional.avg_pool2d(z, 3, 1, 1, count_include_pad=False), min(1, 5 * sigma))
        if self.broken == "denoises":
            return 3 * z
        return blurred - 0.01 * blurred.mean() if self.broken == "alone" else blurred


@dataclass(frozen=True)
class ToyDiffusion(Diffusion):
    """A blur in place of a network."""

    model: str = ""
    broken: str = ""

    def __post_init__(self):
        pass

    def check(self, shape):
        pass

    def prepare(self, device):
        pass

    def load(self, device="cpu"):
        return ToyModel(self.broken)

    def weights_digest(self):
        return "blur"

    def trained_on(self):
        return []


@dataclass(frozen=True)
class ToyMetric(Metric):
    """The mean absolute error."""

    dims = (2, 3)

    columns = (Column("toy", "lower"),)

    broken: str = ""

    def measure(self, case, reconstruction):
        error = (reconstruction.x - case.truth).abs().flatten(1).mean(dim=1)
        match self.broken:
            case "numbers":
                return Measured({"toy": error * torch.nan})
            case "columns":
                return Measured({"toy": error, "other": error})
            case "direction":
                error = -error
            case "alone":
                error = error * len(error)
            case "repeatable":
                error = error + 1e-7 * int.from_bytes(os.urandom(1), "little")
            case "global_state":
                torch.rand(1)
            case "inputs":
                reconstruction.x.sub_(case.truth)
        return Measured({"toy": error})


@dataclass(frozen=True)
class Percent(Metric):
    """A proportion that is not one."""

    columns = (Column("percent", "none", interval="binomial"),)

    def measure(self, case, reconstruction):
        return Measured({"percent": torch.full((len(case.truth),), 90.0)})


@dataclass(frozen=True)
class ToyJointMetric(JointMetric):
    """The mean of all images."""

    columns = (Column("toy", "none"),)

    broken: str = ""

    def gather(self, imaging, structure):
        return ToyGathering(self.broken)


@dataclass
class ToyGathering(Gathering):
    broken: str
    means: list = field(default_factory=list)

    def add(self, images, answer):
        self.means += [images.mean()] if self.broken == "chunks" else list(images.flatten(1).mean(dim=1))

    def measure(self):
        mean = torch.stack(self.means).mean()
        return MeasuredTogether({"toy": math.nan if self.broken == "together" else mean.item()})


@dataclass(frozen=True)
class ToySource(Source):
    """Six noisy images."""

    broken: str = ""

    def open(self):
        return [] if self.broken == "opens" else ToyStack(self.broken)


@dataclass
class ToyStack(Stack):
    broken: str
    images: list = field(default_factory=lambda: list(np.random.default_rng(0).random((6, 8, 8), np.float32)))
    label = "toys"
    shape = (8, 8)
    reads: int = 0

    def __len__(self):
        return 6

    def read(self, index):
        if self.broken != "bounds":
            self.check(index)
        self.reads += 1
        image = self.images[index % 6]
        match self.broken:
            case "shape":
                return image.astype(np.float64)
            case "repeatable":
                return image + np.float32(self.reads)
            case "copies":
                return image
            case "global_state":
                random.random()
        return image.copy()

    def pixel_size(self, index):
        return -1.0 if self.broken == "pixel_size" else 2.0

    @property
    def table(self):
        import pandas as pd

        return pd.DataFrame({"rlnVoltage": [300.0] * (5 if self.broken == "table" else 6)})

    def clean(self, index):
        return self.images[index].mean(keepdims=True) if self.broken == "clean" else self.images[index]

    def volume(self, index):
        side = self.shape[-1]
        return np.zeros((side,) * (2 if self.broken == "volume" else 3), np.float32), 2.0


class ToySamples(Samples):
    def __init__(self, examples, seed, broken):
        self._examples, self._seed, self._broken = examples, seed, broken
        self.shape = examples.shape(0)[1:]
        self._drawn = 0

    @property
    def origins(self):
        return []

    def batch(self, step, size, part=slice(None)):
        self._drawn += 1
        if self._broken == "global_state":
            random.random()
        numbers = list(range(step * size, step * size + size))
        key = self._drawn if self._broken == "repeatable" else 0
        read = [self._examples.read(int(generator("toy", self._seed, key, n).initial_seed() % 3)) for n in numbers]
        return torch.stack(read)[slice(None) if self._broken == "divisible" else part]


@dataclass(frozen=True)
class ToyObjective(Objective):
    """A linear network that reproduces its input."""

    weights = "model.safetensors"
    usage = "use it nowhere"

    broken: str = ""

    def examples(self, stack):
        return StackExamples(stack)

    def samples(self, examples, *, seed, device, held_out=False):
        if min(examples[0].shape(0)[1:]) < 3:
            raise IndexError if self.broken == "refuses" else DataError("these images are too small; give larger ones")
        return None if self.broken == "gives_samples" else ToySamples(examples[0], seed, self.broken)

    def build(self, samples):
        return torch.nn.Conv2d(1, 1, 3, padding=1)

    def losses(self, network, batch):
        error = (network(batch) - batch).square()
        if self.broken == "has_gradient":
            error = 0 * error
        return error.mean() if self.broken == "one_loss_each" else error.mean((1, 2, 3))

    def files(self, network):
        name = "other" if self.broken == "writes_files" else self.weights
        return {name: lambda path: write_weights(network, path)}

    def introduction(self, card):
        return "# A toy"


@dataclass(frozen=True)
class ToyEncoder(Encoder):
    """The mean and the deviation of an image."""

    broken: str = ""

    def check(self, shape):
        if self.broken == "accepts":
            raise IncompatibleError("it is out of order")

    def features(self, images, transfer, pixel_size):
        if self.broken == "without_ctf":
            transfer = transfer.abs()
        found = torch.stack([images.mean((1, 2)), images.std((1, 2))], dim=1)
        match self.broken:
            case "rows":
                return found.float()
            case "independent":
                found = found - found[:1]
            case "repeatable":
                found = found + torch.rand(found.shape, generator=_clock())
            case "no_side_effects":
                images -= 1
            case "global_state":
                torch.rand(1)
        return found.double()

    def weights_digest(self):
        return os.urandom(4).hex() if self.broken == "digest" else ""
