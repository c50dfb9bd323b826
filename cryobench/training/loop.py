"""The training loop of an unconditional DDPM (Ho, Jain & Abbeel 2020, algorithm 1).

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps;    a step on || f(x_t, t) - target ||^2;    target = eps, or v

Noise, levels, images and symmetries of step k depend on (seed, k) only, so a run that was killed and continued ends
with the same weights as an uninterrupted one. Several processes (accelerate) share each batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cryobench import figures
from cryobench.core import Stack
from cryobench.errors import IncompatibleError, ParameterError, TrainingError
from cryobench.priors.diffusion import DiffusionModel
from cryobench.training import checkpoint, export, folder
from cryobench.training.checkpoint import State
from cryobench.training.images import Batch, Images
from cryobench.training.log import Log
from cryobench.training.processes import Processes
from cryobench.training.settings import ARCHITECTURES, BETAS, Settings, T
from cryobench.training.warm_start import load_weights

if TYPE_CHECKING:
    from filelock import BaseFileLock

_VALIDATED = 256
"""Number of images of the validation loss: always the same images, noise and levels."""
_SAMPLES = 16
MIXED = (0.02, 20.0)
"""The range of noise levels sigma_t of half the images with "mixed" levels."""


class TrainingObserver:
    """Callbacks of a run, called in the first process. Override any of them."""

    def started(self, step: int, steps: int) -> None:
        """Training starts, or continues after `step` updates."""

    def stepped(self, step: int, loss: float) -> None:
        """`step` updates are done. loss: that of the last update."""

    def validated(self, step: int, loss: float, best: float) -> None:
        """A validation is done. loss: that of the averaged weights. best: the lowest so far."""

    def saved(self, step: int) -> None:
        """The checkpoint and the pipeline of this step are written."""

    def say(self, message: str) -> None:
        """A message for the user."""

    def warn(self, message: str) -> None:
        """A warning for the user."""


def train(
    settings: Settings,
    stacks: Sequence[Stack],
    validation: Sequence[Stack],
    out: Path,
    *,
    device: torch.device,
    observer: TrainingObserver | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train into a folder, or continue there. Returns whether the run is complete, False if `stop` ended it.

    Raises what `Training` and its `run` raise.
    """
    return Training(settings, stacks, validation, out, device=device, observer=observer).run(stop)


class Training:
    """A run that is ready to start or to continue. Its folder is locked until `run` returns.

    out: the folder, which holds a diffusers pipeline from the first checkpoint on. Files are replaced atomically.

    Raises `ParameterError` or `IncompatibleError` if images, network and processes do not match, and `ResultsError` if
    the folder holds another run or cannot be written.
    """

    def __init__(self, settings: Settings, stacks: Sequence[Stack], validation: Sequence[Stack], out: Path, *,
                 device: torch.device, observer: TrainingObserver | None = None):  # fmt: skip
        self.settings, self.out = settings, out
        self.architecture = ARCHITECTURES[settings.network]
        self.processes = Processes(device)
        self.device = self.processes.device
        self.observer = observer if observer is not None and self.processes.main else TrainingObserver()
        self._part = _share(settings.batch, self.processes)
        self._lock: BaseFileLock | None = None
        self._log: Log | None = None
        self.alphas = (1 - torch.linspace(*BETAS, T, dtype=torch.float64)).cumprod(0)
        self.step, self.best, self.best_step = 0, math.inf, 0
        self.before: Mapping[str, Any] | None = None
        with self.processes.together():
            self.images, self.validation = self._open(stacks, validation)
        try:
            self._resume()
        except BaseException:
            self._release()
            raise

    @property
    def ended(self) -> str | None:
        """Why the run is complete; None if it is not."""
        s = self.settings
        if self.step >= s.steps:
            return f"all {s.steps} steps are done"
        stale = s.patience and self.step % s.validate_every == 0 and self.step - self.best_step >= s.patience
        return f"the validation loss has not decreased for {s.patience} steps, at step {self.step}" if stale else None

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train until the run is complete or `stop` is true in any process. Returns whether the run is complete.

        Raises `TrainingError` if the loss is not finite and `ResultsError` if nothing can be written; the last
        checkpoint is kept in both cases.
        """
        try:
            if self.ended:
                self._finish_writing()
                self.observer.say(f"nothing to do: {self.ended}")
                return True
            with self.processes.together():
                if self.processes.main:
                    self._log = Log(self.out, self.step)
            self.observer.started(self.step, self.settings.steps)
            stopping = False
            while not (self.ended or stopping):
                stopping = self._advance(stop)
            if self.ended and self.step < self.settings.steps:
                self.observer.say(f"stopped: {self.ended}")
            return self.ended is not None
        finally:
            self._release()

    def _advance(self, stop: Callable[[], bool]) -> bool:
        """One step, with the validation, checkpoint and samples due after it. Returns whether to stop."""
        s = self.settings
        loss = self._update()
        self.step += 1
        self._record("loss", loss, rate=s.learning_rate(self.step - 1))
        self.observer.stepped(self.step, loss)
        last = self.step == s.steps
        if self.validation is not None and (last or self.step % s.validate_every == 0):
            self._validate(self.validation)
        stopping = self.processes.any(stop())
        if self.ended or stopping or self.step % s.checkpoint_every == 0:
            self._save()
        if last or self.step % s.sample_every == 0:  # slow, so after the checkpoint
            with self.processes.together():
                self._draw_samples()
        return stopping

    def _update(self) -> float:
        """One step of the optimizer; the loss over the whole batch. Raises `TrainingError` if it is not finite."""
        s = self.settings
        batch = self._batch()
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate(self.step)
        accelerator = self.processes.accelerator
        with accelerator.autocast():
            loss = self._losses(self.network, batch).mean()
        accelerator.backward(loss)
        norm: Any = accelerator.clip_grad_norm_(self.network.parameters(), s.clip)
        value = self.processes.mean(loss)
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise self._diverged(f"the loss is {value:g} and its gradient's norm {norm:g}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(list(self.averaged.parameters()), [p.detach() for p in self._own().parameters()],
                             1 - s.decay(self.step))  # fmt: skip
        return value

    def _batch(self) -> Batch:
        """This process's share of the next batch."""
        with self.processes.together():
            return self.images.batch(self.step, self.settings.batch, self._part)

    def _losses(self, network: Any, batch: Batch) -> torch.Tensor:
        """|| f(x_t, t) - target ||^2 / N of each image, [n] float32."""
        t = timesteps(batch.level, self.alphas, self.settings.levels)
        a = self.alphas.to(batch.x0.device)[t].float()[:, None, None, None]
        x = a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.noise
        target = batch.noise
        if self.architecture.prediction == "v_prediction":
            target = a.sqrt() * batch.noise - (1 - a).sqrt() * batch.x0
        unshuffled = torch.nn.functional.pixel_unshuffle
        r = self.architecture.unshuffle
        output = network(unshuffled(x, r), t, return_dict=False)[0]
        return (output.float() - unshuffled(target, r)).square().mean((1, 2, 3))

    @torch.no_grad()
    def _validate(self, images: Images) -> None:
        """Compute the loss of the averaged weights on the validation images."""
        losses = []
        for k in range(-(-_VALIDATED // self.settings.batch)):
            with self.processes.together():
                batch = images.batch(k, self.settings.batch, self._part)
            losses.append(self.processes.gathered(self._losses(self.averaged, batch)))
        loss = float(torch.cat(losses).double().mean())
        if loss < self.best:
            self.best, self.best_step = loss, self.step
        self._record("validation_loss", loss)
        self.observer.validated(self.step, loss, self.best)

    def _draw_samples(self) -> None:
        if not self.processes.main:
            return
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn((_SAMPLES, 1, *self.images.shape), generator=draw).to(self.device)
        model = DiffusionModel(self.averaged, self.alphas, self.architecture.prediction, device=self.device)
        samples = model.generate(noise)[:, 0].cpu().numpy()
        figures.sheet(
            list(samples), titles=[""] * _SAMPLES, pixel_size=[None] * _SAMPLES,
            path=self.out / "samples" / f"step_{self.step:06d}.png",
        )  # fmt: skip

    def _save(self) -> None:
        """Write the checkpoint, then the pipeline with the same weights."""
        self._check_weights()
        with self.processes.together():
            if self._log is not None:
                self._log.flush()
                State(
                    self.step, self.settings, self._own().state_dict(), self.averaged.state_dict(),
                    self.optimizer.state_dict(), self.best, self.best_step, self.before,
                ).save(self.out)  # fmt: skip
                self._export()
        self.observer.saved(self.step)

    @torch.no_grad()
    def _check_weights(self) -> None:
        """Raise `TrainingError` unless the loss of the next step is finite, so that every checkpoint is usable."""
        batch = self._batch()
        for what, network in (("weights", self._own()), ("averaged weights", self.averaged)):
            loss = self.processes.mean(self._losses(network, batch).mean())
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of the {what} is {loss:g}")

    def _export(self) -> None:
        card = export.make_card(self.settings, self.step, self.images, self.validation, self.best, self.best_step,
                                self.before)  # fmt: skip
        export.write_pipeline(self.averaged, self.architecture.prediction, self.out, card=card)

    def _finish_writing(self) -> None:
        """Write the pipeline if the run was killed between the last checkpoint and the pipeline."""
        with self.processes.together():
            if self.processes.main and export.read_card(self.out).get("steps") != self.step:
                self._export()

    def _diverged(self, what: str) -> TrainingError:
        path = self.out / checkpoint.NAME
        kept = f"the checkpoint in {path} is from an earlier step" if path.exists() else "there is no checkpoint yet"
        return TrainingError(
            f"at step {self.step + 1} {what}; {kept}. Continue with a smaller --lr than {self.settings.lr:g}"
        )

    def _record(self, name: str, value: float, rate: float | None = None) -> None:
        if self._log is not None:
            self._log.add(self.step, name, value, rate)

    def _own(self) -> torch.nn.Module:
        """The network without accelerate's wrapper."""
        return self.processes.accelerator.unwrap_model(self.network)

    def _resume(self) -> None:
        """Lock the folder and load its checkpoint, if any."""
        with self.processes.together():
            if self.processes.main:
                self._lock = folder.claim(self.out)
            state = folder.find_state(self.out, self.settings, self.images.shape)
        self._build(state)
        with self.processes.together():
            if self.processes.mean(torch.tensor(float(self.step), device=self.device)) != self.step:
                raise ParameterError(f"the processes do not see the same checkpoint in {self.out}; give a folder that "
                                     "all machines share")  # fmt: skip

    def _release(self) -> None:
        """Close the log and unlock the folder."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()

    def _build(self, state: State | None) -> None:
        """Create the network, its average and the optimizer, from a checkpoint if given."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            network = self.architecture.build(self.images.shape)
        if self.settings.warm_start and state is None:
            self.before = load_weights(
                network, self.settings.warm_start, self.images.shape, self.architecture.prediction
            )
        self.averaged = copy.deepcopy(network).to(self.device).requires_grad_(False).eval()  # pyright: ignore
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.settings.lr, weight_decay=1e-4)
        if state is not None:
            network.load_state_dict(state.network)
            self.averaged.load_state_dict(state.averaged)
            self.step, self.best, self.best_step = state.step, state.best, state.best_step
            self.before = state.before
        if self.device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network, self.optimizer = self.processes.accelerator.prepare(network, optimizer)
        if state is not None:
            self.optimizer.load_state_dict(state.optimizer)

    def _open(self, stacks: Sequence[Stack], validation: Sequence[Stack]) -> tuple[Images, Images | None]:
        """The training and validation images. Raises if they do not match the network or each other."""
        s = self.settings
        images = Images(stacks, seed=s.seed, turns=s.turns, device=self.device, of="train",
                        clean=s.target == "clean")  # fmt: skip
        self.architecture.check(images.shape)
        if not validation:
            return images, None
        others = Images(validation, seed=0, turns=False, device=self.device, of="validation",
                        clean=s.target == "clean")  # fmt: skip
        if others.shape != images.shape:
            (h, w), (height, width) = images.shape, others.shape
            raise IncompatibleError(f"training images are {h} x {w}, validation images {height} x {width}; "
                                    "resample them to one size")  # fmt: skip
        both = _paths(s.data) & _paths(s.validation)
        if both or any(origin in images.origins for origin in others.origins):
            self.observer.warn("some images are used for both training and validation: the validation loss will not "
                               "show overfitting")  # fmt: skip
        return images, others


def timesteps(position: torch.Tensor, alphas: torch.Tensor, levels: str) -> torch.Tensor:
    """The levels t [n] for positions in (0, 1), distributed as `Settings.levels`. alphas: a_t, [T]."""
    t = (position * len(alphas)).long()
    if levels == "mixed":
        low, high = MIXED
        sigmas = ((1 - alphas) / alphas).sqrt().to(position.device)
        sigma = low * (high / low) ** (2 * position.double() - 1)
        t = torch.where(position < 0.5, (2 * position * len(alphas)).long(), torch.searchsorted(sigmas, sigma))
    return t.clamp_max(len(alphas) - 1)


def _share(batch: int, processes: Processes) -> slice:
    """This process's share of a batch."""
    n, index = processes.count, processes.index
    if batch % n:
        raise ParameterError(f"--batch {batch} cannot be divided among {n} processes; give a multiple of {n}")
    return slice(index * batch // n, (index + 1) * batch // n)


def _paths(specs: Sequence[str]) -> set[Path]:
    """Specs as absolute paths, so that different spellings of a file are equal."""
    return {Path(spec).expanduser().resolve() for spec in specs}
