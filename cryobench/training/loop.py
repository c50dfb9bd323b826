"""The training loop of an unconditional DDPM (Ho, Jain & Abbeel 2020, algorithm 1).

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps;    a step on || f(x_t, t) - target ||^2;    target = eps, or v

Noise, levels, images and turns of step k follow from (seed, k): a run that is killed and goes on ends with the weights
of one that was not. On several processes (accelerate) each takes its share of a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cryobench import figures
from cryobench.core import Stack
from cryobench.errors import ParameterError, ResultsError, TrainingError
from cryobench.priors.diffusion import DiffusionModel
from cryobench.training import export
from cryobench.training.checkpoint import NAME, State
from cryobench.training.images import Batch, Images
from cryobench.training.log import Log
from cryobench.training.settings import PRESETS, SIZES, Settings, T

_VALIDATED = 256
"""Images of the validation loss: always the same, with the same noise at the same levels."""
_SAMPLES = 16


class Observer:
    """What a caller may want to be told. Every method may be left as it is."""

    def started(self, step: int, steps: int) -> None:
        """Training begins, or goes on after `step` updates."""

    def stepped(self, step: int, loss: float) -> None:
        """So many updates are done; the loss of the last one."""

    def validated(self, step: int, loss: float, best: float) -> None:
        """The validation loss of the averaged weights, and the lowest so far."""

    def say(self, message: str) -> None:
        """Something worth knowing."""


def train(
    settings: Settings,
    stacks: Sequence[Stack],
    validation: Sequence[Stack],
    out: Path,
    *,
    device: torch.device,
    observer: Observer | None = None,
) -> Path:
    """Train, or go on, and return the folder, a diffusers pipeline. Its files are whole at any moment.

    Raises `TrainingError` when the loss is no longer finite, `ResultsError` where the folder belongs to another run or
    cannot be written: the last good checkpoint is there in both cases.
    """
    return _Run(settings, stacks, validation, out, device, observer or Observer()).train()


class _Run:
    def __init__(self, settings: Settings, stacks: Sequence[Stack], validation: Sequence[Stack], out: Path,
                 device: torch.device, observer: Observer):  # fmt: skip
        from accelerate import Accelerator

        cuda = device.type == "cuda"
        self.accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda else "no")
        self.settings, self.out, self.device = settings, out, self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.observer = observer if self.main else Observer()
        self.part = self._share()
        self.images = Images(stacks, seed=settings.seed, turns=settings.turns, device=self.device, of="train")
        self.validation = (
            Images(validation, seed=0, turns=False, device=self.device, of="validation") if validation else None
        )
        self.preset = PRESETS[settings.preset]
        self._check_shape()
        levels = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)  # Ho et al. 2020, section 4
        self.alphas = (1 - levels).cumprod(0)
        state = self._prepare_folder()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = self.preset.build(self.images.shape)
        self.averaged = copy.deepcopy(network).to(self.device).requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=1e-4)
        self.step, self.best, self.best_step = 0, math.inf, 0
        if state is not None:
            network.load_state_dict(state.network)
            self.averaged.load_state_dict(state.averaged)
            self.step, self.best, self.best_step = state.step, state.best, state.best_step
        if cuda:
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        if state is not None:
            self.optimizer.load_state_dict(state.optimizer)
        self.log = Log(out, self.step) if self.main else None

    def train(self) -> Path:
        self.observer.started(self.step, self.settings.steps)
        s = self.settings
        while self.step < s.steps:
            loss = self._update()
            self.step += 1
            self._record("loss", loss, rate=s.learning_rate(self.step - 1))
            self.observer.stepped(self.step, loss)
            last = self.step == s.steps
            if last or self.step % s.validate_every == 0:
                self._validate()
            if self.main and (last or self.step % s.sample_every == 0):
                self._draw_samples()
            stale = s.patience and self.validation is not None and self.step - self.best_step >= s.patience
            if last or stale or self.step % s.checkpoint_every == 0:
                self._save()
            if stale:
                self.observer.say(f"stopped: the validation loss has not fallen for {s.patience} steps")
                break
        if self.log is not None:
            self.log.close()
        return self.out

    def _update(self) -> float:
        """One step of the optimizer; the loss over the whole batch. Raises `TrainingError` where it is not finite."""
        s = self.settings
        batch = self.images.batch(self.step, s.batch, self.part)
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate(self.step)
        with self.accelerator.autocast():
            loss = self._losses(self.network, batch).mean()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), s.clip)
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise TrainingError(self._lost(value, float(norm)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        own = self.accelerator.unwrap_model(self.network)
        torch._foreach_lerp_(list(self.averaged.parameters()), [p.detach() for p in own.parameters()],
                             1 - s.decay(self.step))  # fmt: skip
        return value

    def _lost(self, loss: float, norm: float) -> str:
        path = self.out / NAME
        kept = f"the checkpoint in {path} is from before" if path.exists() else "there is no checkpoint yet"
        return (
            f"at step {self.step + 1} the loss is {loss:g} and its gradient's norm {norm:g}; {kept}. "
            f"Go on with a smaller --lr than {self.settings.lr:g}"
        )

    def _losses(self, network: Any, batch: Batch) -> torch.Tensor:
        """|| f(x_t, t) - target ||^2 / N of each image, [n] float32."""
        t = (batch.level * T).long().clamp_max(T - 1)
        a = self.alphas.to(batch.x0.device)[t].float()[:, None, None, None]
        x = a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.noise
        target = batch.noise
        if self.preset.prediction == "v_prediction":
            target = a.sqrt() * batch.noise - (1 - a).sqrt() * batch.x0
        unshuffled = torch.nn.functional.pixel_unshuffle
        r = self.preset.unshuffle
        output = network(unshuffled(x, r), t, return_dict=False)[0]
        return (output.float() - unshuffled(target, r)).square().mean((1, 2, 3))

    @torch.no_grad()
    def _validate(self) -> None:
        """The loss of the averaged weights on images that are not trained on; every process computes it."""
        if self.validation is None:
            return
        size = self.settings.batch
        losses = [self._losses(self.averaged, self.validation.batch(k, size)) for k in range(-(-_VALIDATED // size))]
        loss = float(torch.cat(losses).double().mean())
        if loss < self.best:
            self.best, self.best_step = loss, self.step
        self._record("validation_loss", loss)
        self.observer.validated(self.step, loss, self.best)

    def _draw_samples(self) -> None:
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn((_SAMPLES, 1, *self.images.shape), generator=draw).to(self.device)
        samples = self.model().generate(noise)[:, 0].cpu().numpy()
        figures.sheet(
            list(samples), titles=[""] * _SAMPLES, pixel_size=[None] * _SAMPLES,
            path=self.out / "samples" / f"step_{self.step:06d}.png",
        )  # fmt: skip

    def model(self) -> DiffusionModel:
        """The averaged weights as they are now."""
        return DiffusionModel(self.averaged, self.alphas, self.preset.prediction, device=self.device)

    def _save(self) -> None:
        if not self.main:
            return
        own = self.accelerator.unwrap_model(self.network)
        State(
            self.step, self.settings, own.state_dict(), self.averaged.state_dict(), self.optimizer.state_dict(),
            self.best, self.best_step,
        ).save(self.out)  # fmt: skip
        assert self.log is not None
        self.log.flush()
        export.write_pipeline(self.averaged, self.preset.prediction, self.out)
        best = {"validation_loss": self.best, "validation_loss_at_step": self.best_step} if self.validation else {}
        export.write_card(self.out, self.settings, self.step, self.images, self.validation, best)

    def _record(self, name: str, value: float, **more: float) -> None:
        if self.log is not None:
            self.log.add(self.step, name, value, **more)

    def _share(self) -> slice:
        """This process's share of a batch."""
        n, size = self.accelerator.num_processes, self.settings.batch
        if size % n:
            raise ParameterError(f"--batch {size} cannot be shared evenly by {n} processes; give a multiple of {n}")
        return slice(self.accelerator.process_index * size // n, (self.accelerator.process_index + 1) * size // n)

    def _check_shape(self) -> None:
        side = SIZES.get(self.settings.preset)
        shape = self.images.shape
        if side is not None and shape != (side, side):
            raise ParameterError(f"the preset {self.settings.preset} is for images of {side} x {side}, got "
                                 f"{shape[0]} x {shape[1]}; resample them with size={side}")  # fmt: skip
        self.preset.check(shape)
        if self.validation is not None and self.validation.shape != shape:
            raise ParameterError(f"images to train on have shape {shape}, those to validate on {self.validation.shape}")

    def _prepare_folder(self) -> State | None:
        """The checkpoint to go on from; raises `ResultsError` where the folder belongs to another run."""
        try:
            (self.out / "samples").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"cannot make {self.out}: {error.strerror}; choose another folder") from error
        state = State.load(self.out)
        if state is None:
            return None
        different = state.settings.differences(self.settings)
        if different:
            was = "; ".join(f"{name} was {getattr(state.settings, name)}, is {getattr(self.settings, name)}"
                            for name in different)  # fmt: skip
            raise ResultsError(f"{self.out} holds another training run ({was}); give what it had, or another --out")
        return state
