"""The priors whose network is in a folder that `cryobench train` writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from cryobench.core import Prior
from cryobench.errors import DataError, described
from cryobench.file_state import FileState
from cryobench.networks.files import CONFIG, WEIGHTS, read_config, read_json, read_network
from cryobench.priors.model_folder import CARD


@dataclass(frozen=True)
class NetworkFolder(Prior):
    """A network in a folder.

    architecture: a name of `networks.files`. objective: the one that trains it. kind: what messages call the network.
    """

    location_fields = ("source",)
    architecture: ClassVar[str]
    objective: ClassVar[str]
    kind: ClassVar[str]

    source: Annotated[str, "a folder that `cryobench train` wrote"]
    _base: Path | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.relative:
            # a relative path refers to the current folder now, which may change before the network is loaded
            object.__setattr__(self, "_base", Path.cwd())

    @property
    def relative(self) -> bool:
        """Whether `source` is a relative path."""
        return not self.source.startswith(("/", "~"))

    @property
    def folder(self) -> Path:
        """The folder of the network. Raises `DataError` if there is none."""
        folder = (self._base or Path()) / Path(self.source).expanduser()
        if not (folder / CONFIG).exists():
            raise DataError(f"{self.source} is no folder of a {self.kind}: it has no {CONFIG}; give one that "
                            f"`cryobench train --objective {self.objective}` wrote")  # fmt: skip
        return folder

    @property
    def config(self) -> Any:
        """The architecture. Raises `DataError`."""
        return read_config(self.folder, self.architecture)

    @property
    def facts(self) -> Mapping[str, Any]:
        """The content of `CONFIG`."""
        return read_json(self.folder / CONFIG)

    def load(self, device: torch.device | str = "cpu") -> Any:
        """The network on a device, cached after it is read. Raises `DataError` if it cannot be read."""
        return _loaded(self.folder, self.architecture, self.weights_digest(), str(device))

    def prepare(self, device: torch.device) -> None:
        self.load(device)

    def weights_digest(self) -> str:
        """SHA-256 of architecture and weights, independent of their place."""
        paths = [path for path in (self.folder / CONFIG, self.folder / WEIGHTS) if path.exists()]
        stamp = tuple(FileState.of(path, self.kind) for path in paths)
        return _digest(self.folder, self.architecture, stamp)

    def trained_on(self) -> Sequence[Mapping[str, str]]:
        """The origins of the training images, and the digest of each half of a micrograph it was trained on as `half`;
        empty without a card."""
        card = self.card
        return [*card.get("trained_on", ()), *({"half": digest} for digest in card.get("halves", ()))]

    @property
    def card(self) -> Mapping[str, Any]:
        """The card that `cryobench train` writes; empty without one."""
        path = self.folder / CARD
        return read_json(path) if path.exists() else {}


@lru_cache(maxsize=8)
def _digest(folder: Path, architecture: str, stamp: object) -> str:
    """`stamp` is a cache key: it changes when the files do."""
    digest = hashlib.sha256(repr(read_config(folder, architecture)).encode())
    try:
        digest.update((folder / WEIGHTS).read_bytes())
    except OSError as error:
        raise DataError(f"{folder / WEIGHTS} cannot be read ({described(error)}); copy the folder again") from error
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _loaded(folder: Path, architecture: str, digest: str, device: str) -> Any:
    return read_network(folder, architecture).to(device)
