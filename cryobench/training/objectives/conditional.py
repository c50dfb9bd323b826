"""`conditional` and `regression`: one network, trained as diffusion conditioned on images, or to predict the mean.

EMDiffuse (Lu et al. 2024, Nat. Commun. 15) trains the first; the second, of the same size, data and number of updates,
shows what diffusion adds. With c the noisy image, or two sections of a volume, x the target and (gamma, eps) a noise
level and noise,

    conditional:  || f(sqrt(gamma) x + sqrt(1 - gamma) eps, c, gamma) - eps ||^2
    regression:   || b(c) + f(0, c, 1) - x ||^2

with b(c) = c, or the linear interpolation between the sections. With a trained regression m, `conditional:mean=` has
(x - m(c)) / s in place of x: diffusion of what the regression leaves (Mardani et al. 2025, Commun. Earth Environ. 6).
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from shutil import copyfile
from typing import Annotated, Any, ClassVar, Literal

import torch

from cryobench import figures
from cryobench.core import Examples, OperatorRecipe, Samples, Stack
from cryobench.core.objective import Writer
from cryobench.errors import IncompatibleError, ParameterError
from cryobench.networks.files import CONFIG, WEIGHTS, config_values
from cryobench.networks.film import FilmConfig, FilmUNet, preset
from cryobench.networks.refinement import SAMPLING, TRAINING, drawn_level, noisy, respaced, sample, velocity
from cryobench.networks.restoring import Restorer, interpolated
from cryobench.numerics.philox import RowDraws
from cryobench.priors.conditional import IMAGE, MEAN, NOISE, PATCH, PREDICTS, SPREAD, VELOCITY
from cryobench.priors.conditional import Conditional as ConditionalNetwork
from cryobench.priors.model_folder import CARD
from cryobench.priors.network_folder import NetworkFolder
from cryobench.spec import Component
from cryobench.training.examples import CleanExamples, MeasuredExamples, PairExamples, StackExamples, noisy_and_clean
from cryobench.training.export import initial_weights, write_json, write_weights
from cryobench.training.gaps import AXES, GapPatches
from cryobench.training.objectives.restoration import Restoration
from cryobench.training.patches import Pair

_NOISE, _STEP, _BETWEEN, _ADDED = range(4)
SHOWN, SHOWN_STEPS = 4, 20
"""Patches in a figure, and the sampling steps of each."""
_RESIDUALS, _TOGETHER = 256, 16
"""Patches from which the deviation of a residual is measured, and how many at a time."""


@dataclass(frozen=True)
class NoisyPatches:
    """Conditions [n, c, h, w] and targets [n, k, h, w] with deviation 1 / SPREAD, noise like the target and its level
    [n]. place: the index of each target in its gap, [n], for networks with such an embedding."""

    condition: torch.Tensor
    target: torch.Tensor
    noise: torch.Tensor
    level: torch.Tensor
    place: torch.Tensor | None


class _Noisy(Samples):
    """Patches, each with noise and a noise level that depend on the seed and its number only."""

    def __init__(
        self, patches: Samples, seed: int, of: str, device: torch.device, added: float, compression: float | None
    ):
        self.shape, self.compression = patches.shape, compression
        self._patches, self._device, self._added = patches, device, added
        self._draws = RowDraws(seed, "conditional", of)
        self._gammas = TRAINING.gammas()

    @property
    def origins(self) -> list[dict[str, str]]:
        return self._patches.origins

    def facts(self, drawn: int) -> dict[str, Any]:
        return self._patches.facts(drawn)

    def batch(self, step: int, size: int, part: slice = slice(None)) -> NoisyPatches:
        pair: Pair = self._patches.batch(step, size, part)
        numbers = step * size + torch.arange(size)[part]
        noise = self._normal(numbers, _NOISE, pair.target.shape[1:])
        condition = pair.input
        if self._added:
            condition = condition + self._added * self._normal(numbers, _ADDED, condition.shape[1:])
        spread = SPREAD * (1 + self._added**2) ** 0.5  # the deviation of the whole image with the added noise
        step_of, between = (self._draws.uniform(numbers, purpose, 1)[:, 0] for purpose in (_STEP, _BETWEEN))
        level = drawn_level(step_of, between, self._gammas).to(self._device)
        return NoisyPatches(condition / spread, pair.target / spread, noise, level, pair.place)

    def _normal(self, numbers: torch.Tensor, purpose: int, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal numbers for patches, [n, *shape]."""
        drawn = self._draws.normal(numbers.to(self._device), purpose, math.prod(shape), torch.float32)
        return drawn.reshape(-1, *shape)


class _Residuals(Samples):
    """Patches whose target is what a regression leaves of it. Divided by `scale` it has the deviation 1 / SPREAD in the
    first `_RESIDUALS` patches. learned: origins of the data of the regression."""

    def __init__(
        self, patches: Any, mean: Callable[[NoisyPatches], torch.Tensor], learned: Sequence[Mapping[str, str]]
    ):
        self.shape = patches.shape
        self._patches, self.mean = patches, mean
        self._learned = [dict(origin) for origin in learned if "half" not in origin]

    @property
    def origins(self) -> list[dict[str, str]]:
        own = self._patches.origins
        return [*own, *(origin for origin in self._learned if origin not in own)]

    def facts(self, drawn: int) -> dict[str, Any]:
        return self._patches.facts(drawn)

    @property
    def compression(self) -> float | None:
        return self._patches.compression

    @cached_property
    def scale(self) -> float:
        squares = [self.batch(k, _TOGETHER).target.double().square().mean() for k in range(_RESIDUALS // _TOGETHER)]
        return SPREAD * float(torch.stack(squares).mean().sqrt())

    @torch.no_grad()
    def batch(self, step: int, size: int, part: slice = slice(None)) -> NoisyPatches:
        batch = self._patches.batch(step, size, part)
        return dataclasses.replace(batch, target=batch.target - self.mean(batch))


@dataclass(frozen=True)
class _OfCondition(Restoration):
    """Common parameters: the network and its data."""

    _model: ClassVar[type[NetworkFolder]] = ConditionalNetwork

    network: Annotated[str, "tiny or published"] = "tiny"
    target: Annotated[Literal["clean", "other"], "the image without noise, or another of the same specimen"] = "clean"
    noise: Annotated[
        float | None,
        "add Gaussian noise of this deviation, relative to that of the image; none: the images are noisy",
    ] = None
    operator: Annotated[
        OperatorRecipe | None,
        Component("operators"),
        "measures clean images; the network restores what a simple inverse makes of that. noise: of measurements",
    ] = None
    gap: Annotated[
        int | None, "R: predict the sections between two of a volume that are R apart; none: restore single images"
    ] = None
    joint: Annotated[bool, "with gap: all R - 1 sections at once, or one, with an index embedding"] = False
    axes: Annotated[
        str, "with gap: the axes across which sections lie; yx are the lateral ones of anisotropic volumes"
    ] = AXES
    blur: Annotated[float, "with gap: blur each of the two sections half of the time, standard deviation in pixels"] = (
        0.0
    )

    def __post_init__(self) -> None:
        if self.gap is not None and self.gap < 2:
            raise ParameterError(f"gap must be at least 2, the distance of sections with one between, got {self.gap}")
        super().__post_init__()
        if self.noise is not None and not 0 < self.noise < math.inf:
            raise ParameterError(f"noise must be positive, got {self.noise:g}; leave it out for noisy images")
        if (self.noise is not None or self.operator is not None) and self.target != "clean":
            raise ParameterError("noise and operator are for images without noise; leave out target=other")
        if self.gap is None:
            if self.joint or self.blur or self.axes != AXES:
                raise ParameterError("joint, axes and blur are of gaps between sections; give gap, such as gap=4")
            return
        if self.target != "clean" or self.noise is not None or self.operator is not None:
            raise ParameterError("gap fills volumes as they are; leave out noise, operator and target")
        if not self.axes or set(self.axes) - set(AXES) or len(set(self.axes)) < len(self.axes):
            raise ParameterError(f"axes must be some of {AXES}, each once, got {self.axes!r}")
        if not 0 <= self.blur < math.inf:
            raise ParameterError(f"blur must be zero or a positive number of pixels, got {self.blur:g}")

    @property
    def dims(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Volumes for gaps between their sections, else images."""
        return (2,) if self.gap is None else (3,)

    @property
    def _config(self) -> FilmConfig:
        config = preset(self.network)
        if self.gap is None:
            return config
        together = {"images": self.gap - 1} if self.joint else {"places": self.gap - 1}
        return dataclasses.replace(config, conditions=2, **together)

    def examples(self, stack: Stack) -> Examples:
        if self.gap is not None:
            return StackExamples(stack)
        if self.operator is not None:
            return MeasuredExamples(stack, self.operator, noise=self.noise or 0.0)
        if self.noise is not None:
            return CleanExamples(stack)
        if self.target == "other":
            return PairExamples(stack)
        return noisy_and_clean(stack, "give target=other for data with a second image of each specimen, or noise= to "
                               "add noise to clean images")  # fmt: skip

    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Samples:
        own, of = (0, "validation") if held_out else (seed, "train")
        if self.gap is None:
            patches: Samples = self._patches(examples, seed, device, held_out, swap=False)
        else:
            patches = GapPatches(examples, gap=self.gap, side=self.patch, axes=self.axes, joint=self.joint,
                                 blur=0.0 if held_out else self.blur, seed=own, turns=self.turns and not held_out,
                                 device=device, of=of)  # fmt: skip
        added = 0.0 if self.operator is not None else self.noise or 0.0
        compressions = {each.facts["compression"] for each in examples if "compression" in each.facts}
        if len(compressions) > 1:
            raise IncompatibleError(f"the operator has the compressions {sorted(compressions)} on these images; train "
                                    "on images of one size")  # fmt: skip
        return _Noisy(patches, own, of, device, added, next(iter(compressions), None))

    def build(self, samples: Any) -> torch.nn.Module:
        return FilmUNet(dataclasses.replace(self._config, compression=samples.compression))

    def initialise(self, network: Any, source: str, samples: Samples) -> Mapping[str, Any]:
        predicts = self._model(source).predicts  # pyright: ignore[reportAttributeAccessIssue]
        if predicts != self._predicts:
            raise IncompatibleError(f"--warm-start {source} predicts the {predicts}, this objective the "
                                    f"{self._predicts}; give another")  # fmt: skip
        return super().initialise(network, source, samples)

    def draw(self, network: Any, samples: Samples, path: Path) -> None:
        """Write a sheet of patches: conditions, outputs and targets of each."""
        batch: NoisyPatches = samples.batch(0, SHOWN)
        output, target = self._shown(network, batch), batch.target
        if isinstance(samples, _Residuals):
            mean = samples.mean(batch)
            output, target = mean + network.scale * output, mean + target
        parts = {"input": batch.condition, "output": output, "target": target}
        images = list(torch.cat(list(parts.values()), dim=1).flatten(0, 1).float().cpu().numpy())
        titles = [name for name, part in parts.items() for _ in range(part.shape[1])]
        figures.sheet(images, titles=titles * SHOWN, pixel_size=[None] * len(images), path=path, columns=len(titles))

    @abstractmethod
    def _shown(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        """The output for a figure."""

    @property
    @abstractmethod
    def _predicts(self) -> str:
        """What the network predicts."""

    def files(self, network: Any) -> Mapping[str, Writer]:
        values = config_values(network.config, **{PREDICTS: self._predicts, PATCH: self.patch})
        return {WEIGHTS: partial(write_weights, network), CONFIG: partial(write_json, values)}

    def introduction(self, card: Mapping[str, Any]) -> str:
        settings = card["settings"]
        operator = "identity" if self.gap is None else f"slices:{self.gap}"
        use = f"the operator `{operator}`" if self.operator is None else "the operator of the settings"
        scaled = "input image" if self.gap is None else "volume"
        return (
            f"# {self._title}\n\n"
            f"A U-Net (`{settings['network']}`) trained with `cryobench train`: {card['steps']} steps of "
            f"{settings['batch']} patches of {settings['patch']} x {settings['patch']} pixels, averaged weights. "
            f"{initial_weights(card)}Patches are on the scale on which the whole {scaled} has mean 0 and standard "
            f"deviation 1 / {SPREAD:g}.\n\nUse it on {use}: {self.usage.format('./FOLDER')}."
        )

    _title: ClassVar[str]


@dataclass(frozen=True)
class ConditionalDiffusion(_OfCondition):
    """Diffusion conditioned on a noisy image, for samples of the image without noise, or with gap=R on two sections of
    a volume, for samples of those between.

    The network predicts the noise of a noised target from it, its noise level and the condition. Levels are drawn
    uniformly between neighbouring ones of 2000 linear steps. The loss is || f - eps ||^2. (Lu et al. 2024, EMDiffuse;
    Saharia et al. 2022, Palette.) With predict=velocity it is || f - v ||^2, v = sqrt(gamma) eps - sqrt(1 - gamma) x
    (Salimans & Ho 2022), whose estimate of x has a bounded error where there is much noise.
    """

    usage = "use it as emdiffuse:model={}"
    _title = "A conditional diffusion model for electron micrographs"

    predict: Annotated[Literal["noise", "velocity"], "what the network predicts; noise as published"] = NOISE
    mean: Annotated[
        ConditionalNetwork | None, Component("priors", folder="conditional"),
        "a network of the objective regression: diffusion is of what it leaves; none: of the image"
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean is None:
            return
        if self.mean.predicts != IMAGE:
            raise ParameterError(f"mean={self.mean.source} predicts the {self.mean.predicts}; give a network of the "
                                 "objective regression")  # fmt: skip
        mean, own = self.mean.config, self._config
        same_task = (mean.compression is None) == (self.operator is None)
        if not same_task or (mean.conditions, mean.places, mean.images) != (own.conditions, own.places, own.images):
            same = "without gap" if self.gap is None else f"with gap={self.gap},joint={str(self.joint).lower()}"
            same += "" if self.operator is None else ", for the operator"
            raise ParameterError(f"mean={self.mean.source} restores something else; train a regression {same}")

    @property
    def _predicts(self) -> str:
        return VELOCITY if self.predict == VELOCITY else NOISE

    def samples(
        self, examples: Sequence[Examples], *, seed: int, device: torch.device, held_out: bool = False
    ) -> Samples:
        patches = super().samples(examples, seed=seed, device=device, held_out=held_out)
        if self.mean is None:
            return patches
        regression = Restorer(self.mean.load(device), self.mean.patch)
        return _Residuals(patches, lambda batch: regression.image(batch.condition, batch.place), self.mean.trained_on())

    def build(self, samples: Any) -> torch.nn.Module:
        network = super().build(samples)
        if self.mean is not None:
            network.scale.fill_(samples.scale)  # pyright: ignore
        return network

    @property
    def _config(self) -> FilmConfig:
        return dataclasses.replace(super()._config, residual=self.mean is not None)

    def weights_digest(self) -> str:
        return "" if self.mean is None else self.mean.weights_digest()

    def files(self, network: Any) -> Mapping[str, Writer]:
        """Those of the network, which are complete last, and those of the regression."""
        own = dict(super().files(network))
        if self.mean is None:
            return own
        paths = [self.mean.folder / name for name in (CONFIG, WEIGHTS, CARD)]
        return own | {f"{MEAN}/{path.name}": partial(copyfile, path) for path in paths if path.exists()}

    def losses(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        """|| f - eps ||^2 / N of each patch, [n]; of the velocity with predict=velocity."""
        target = batch.target if self.mean is None else batch.target / _plain(network).scale
        y = noisy(target, batch.noise, batch.level)
        wanted = batch.noise if self.predict == NOISE else velocity(target, batch.noise, batch.level)
        found = network(y, batch.condition, batch.level, batch.place).float()
        return (found - wanted).square().mean((1, 2, 3))

    def _shown(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        restorer = Restorer(network, self.patch, velocity=self.predict == VELOCITY)
        return sample(lambda y, gamma: restorer.noise(batch.condition, y, gamma, batch.place),
                      lambda: torch.randn(batch.target.shape, generator=generator).to(batch.target),
                      respaced(SAMPLING.gammas(), SHOWN_STEPS))  # fmt: skip


@dataclass(frozen=True)
class Regression(_OfCondition):
    """The mean of the image without noise given the noisy one, by the network of `conditional`: its control. With
    gap=R that of the sections between two of a volume.

    The loss is the squared error, whose minimiser is the conditional mean.
    """

    usage = "use it as regression:model={}"
    _title = "A regression network for electron micrographs"

    @property
    def _predicts(self) -> str:
        return IMAGE

    def losses(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        """<(b(c) + f(c) - x)^2> of each patch, [n]."""
        ones = torch.ones(len(batch.condition), device=batch.condition.device)
        found = network(torch.zeros_like(batch.target), batch.condition, ones, batch.place).float()
        base = interpolated(self._config, batch.condition, batch.place)
        return (base + found - batch.target).square().mean((1, 2, 3))

    def _shown(self, network: Any, batch: NoisyPatches) -> torch.Tensor:
        return Restorer(network, self.patch).image(batch.condition, batch.place)


def _plain(network: Any) -> Any:
    """The network without the wrapper of several processes."""
    return getattr(network, "module", network)
