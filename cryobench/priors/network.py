"""Reading a network and its noise levels from a model folder, and checking that they can be a prior of grey images.

Configurations are checked without diffusers, whose import takes seconds.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cryobench.core.operator import Shape
from cryobench.errors import CryobenchError, DataError, described
from cryobench.extras import of_extra
from cryobench.priors.model_folder import ModelFolder
from cryobench.priors.schedule import betas, unusable_schedule

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel


def image_shape(config: Mapping[str, Any]) -> Shape | None:
    """The shape (H, W) of the images of a usable network with this configuration, None where it does not state it."""
    size, r = config["sample_size"], math.isqrt(config["in_channels"])
    if size is None:
        return None
    h, w = (size, size) if isinstance(size, int) else size
    return h * r, w * r


def side_factor(config: Mapping[str, Any]) -> int:
    """The number that must divide the sides of the images of a usable network with this configuration.

    Every level of a `UNet2DModel` but the last halves its input, which the way up doubles again.
    """
    return math.isqrt(config["in_channels"]) * 2 ** (len(config.get("down_block_types", _BLOCKS)) - 1)


_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
"""The blocks of a `UNet2DModel` whose configuration does not state them."""
_USABLE = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "KDownBlock2D")
"""The blocks that work in a `UNet2DModel` of grey images; others need colours, text or a decoder."""


def unusable(config: Mapping[str, Any]) -> str | None:
    """The reason why a network with this configuration cannot be a prior of grey images, or None."""
    size, channels, out = (config.get(name) for name in ("sample_size", "in_channels", "out_channels"))
    sides = [size, size] if isinstance(size, int) else size
    if sides is not None and not (
        isinstance(sides, Sequence) and len(sides) == 2 and all(isinstance(n, int) and n > 0 for n in sides)
    ):
        return f"has a network with sample_size {size!r}; expected the side of its images, [height, width] or null"
    if not (isinstance(channels, int) and isinstance(out, int) and channels > 0):
        return f"has a network with {channels!r} input and {out!r} output channels; expected two numbers"
    if out == 2 * channels:
        return (
            f"has a network that also predicts a variance ({channels} channels in, {out} out); expected equal numbers"
        )
    if channels != out or math.isqrt(channels) ** 2 != channels:
        return (
            f"has a network with {channels} input and {out} output channels; expected 1, or r^2 of both: grey images, "
            "pixel-unshuffled by r"
        )
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        return "has a class-conditional network; expected an unconditional one"
    if config.get("time_embedding_type", "positional") != "positional":
        return (
            f"has a network with a {config['time_embedding_type']!r} time embedding; expected 'positional', which is "
            "defined between the levels of training"
        )
    blocks = config.get("down_block_types", _BLOCKS)
    if not isinstance(blocks, Sequence) or not blocks:
        return f"has a network with down_block_types {blocks!r}; expected the names of its blocks"
    unknown = [str(name) for name in blocks if str(name).removeprefix("UNetRes") not in _USABLE]
    if unknown:
        return f"has a network with the blocks {', '.join(unknown)}; expected {', '.join(_USABLE)}"
    levels = 2 ** (len(blocks) - 1)
    if sides is not None and any(side % levels for side in sides):
        return (
            f"has a network with sample_size {size!r}, which its {len(blocks)} levels cannot halve "
            f"{len(blocks) - 1} times; expected a multiple of {levels}"
        )
    return None


def read_network(folder: ModelFolder) -> UNet2DModel:
    """The network with its weights in float32, read by diffusers from local files without executing code in them.

    Names of weights may have the prefixes that compiled and distributed networks add. Raises `DataError` for weights
    that cannot be read or do not fit the configuration.
    """
    with of_extra("diffusion"):
        from diffusers.models.unets.unet_2d import UNet2DModel

    config, layout = folder.unet_config, folder.layout
    try:
        with _silent(), _without_prefixes(folder) as plain:
            loaded: Any = UNet2DModel.from_pretrained(
                plain or folder.root / Path(layout.config).parent,
                variant=None if plain else layout.variant,
                use_safetensors=bool(plain) or not layout.pickled,  # pickles are read with weights_only
                local_files_only=True,
                torch_dtype=torch.float32,
                disable_mmap=True,  # a memory-mapped file could be overwritten while the model is in use
                ignore_mismatched_sizes=True,  # they are in the report, and an error below
                output_loading_info=True,
            )
        unet, report = loaded
    except CryobenchError:
        raise
    except Exception as error:  # from diffusers, safetensors, torch or the disk
        raise DataError(
            f"its network cannot be read by diffusers ({described(error)}); expected a UNet2DModel: download it again"
        ) from error
    wrong_shapes = [f"{name} {tuple(found)} for {tuple(shape)}" for name, found, shape in report["mismatched_keys"]]
    wrong = {name for name, *_ in report["mismatched_keys"]} | set(report["missing_keys"])
    infinite = [name for name, tensor in unet.state_dict().items() if name not in wrong and not tensor.isfinite().all()]
    faults = [
        _some("are missing", sorted(report["missing_keys"])),
        _some("are unexpected", sorted(report["unexpected_keys"])),
        _some("have a wrong shape", wrong_shapes),
        _some("are not finite", infinite),
    ]
    if any(faults):
        raise DataError(f"its weights do not fit {layout.config}: {'; '.join(filter(None, faults))}")
    # diffusers records the local folder, which would be written to copies of the network
    unet.register_to_config(_name_or_path=config.get("_name_or_path", ""))
    return unet.eval().requires_grad_(False)


@contextmanager
def _without_prefixes(folder: ModelFolder) -> Iterator[Path | None]:
    """A temporary copy of the network whose weights have their own names; None if the names have no prefixes.

    `torch.compile` adds `_orig_mod.` to the names of what it wraps, distributed training `module.` in front.
    """
    names = [name for path in folder.weights for name in _names(path)]
    own = {name: _PREFIX.sub(r"\1", name) for name in names}
    if all(name == plain for name, plain in own.items()):
        yield None
        return
    if len({*own.values()}) < len(own):
        raise DataError(
            f"the weights of {folder.layout.config} have some names with and without a prefix; keep one set"
        )
    weights = {own[name]: tensor.contiguous() for path in folder.weights for name, tensor in _tensors(path).items()}
    with tempfile.TemporaryDirectory() as beside:
        save_file(weights, Path(beside) / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        (Path(beside) / "config.json").write_bytes((folder.root / folder.layout.config).read_bytes())
        yield Path(beside)


_PREFIX = re.compile(r"(^|\.)(?:_orig_mod\.)+|^(?:(?:module|_orig_mod)\.)+")


def _names(path: Path) -> list[str]:
    if path.suffix == ".bin":
        return list(_tensors(path))
    with safe_open(path, framework="numpy") as file:
        return list(file.keys())


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file; a pickle is read without executing code in it."""
    if path.suffix == ".bin":
        return torch.load(path, map_location="cpu", weights_only=True)
    return load_file(path)


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress warnings and progress bars of diffusers: `read_network` raises an error for what they report."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _some(fault: str, names: Sequence[str]) -> str:
    """'3 are missing (a, b, ...)', '' for no names."""
    return f"{len(names)} {fault} ({', '.join([*names[:2], *(['...'] if len(names) > 2 else [])])})" if names else ""


def read_levels(config: Mapping[str, Any]) -> torch.Tensor:
    """a_t, [T] float32, from a scheduler's betas. Raises `DataError` for a scheduler that is not defined by betas."""
    with of_extra("diffusion"):
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    reason = unusable_schedule(config)
    if reason:
        raise DataError(f"the model {reason}")
    return DDPMScheduler(**betas(config)).alphas_cumprod
