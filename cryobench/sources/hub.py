"""Stacks on the Hugging Face hub: downloaded once, then read from the local cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cryobench.core import Source
from cryobench.errors import DataError, ParameterError, told
from cryobench.sources.stacks import File, FileStack

_PATH = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^/\s][^\s]*)")
_SECONDS = 5.0
"""How long the hub has to answer before it counts as out of reach."""


@dataclass(frozen=True)
class Hub(Source):
    """Images of a file on the Hugging Face hub, such as a stack of anon202628/EMPIAR10076_128x128.

    A copy in the local cache is used as it is; only without one is the network asked. Name a commit as `revision` to
    read the same images on every machine.
    """

    path: Annotated[str, "OWNER/NAME/FILE on the Hugging Face hub"]
    kind: Annotated[Literal["dataset", "model"], "what kind of repository it is"] = "dataset"
    revision: Annotated[str, "branch, tag or commit"] = "main"
    size: Annotated[int | None, "resample images to this many pixels a side, as the source `file` does"] = None
    as_stack: Annotated[bool, "take the sections of an MRC volume as images"] = False
    invert: Annotated[bool, "multiply by -1: contrast inversion"] = False

    def __post_init__(self) -> None:
        match = _PATH.fullmatch(self.path)
        if match is None or {"", ".", ".."} & set(self.path.split("/")):
            raise ParameterError(f"hub: wanted OWNER/NAME/FILE, such as owner/stacks/particles.mrcs, got {self.path!r}")
        if not self.revision.strip():
            raise ParameterError("hub: the revision is empty; give a branch, tag or commit, such as main")
        self._file("")  # refuses a size that makes no sense

    @property
    def repository(self) -> str:
        """OWNER/NAME."""
        return "/".join(self.path.split("/")[:2])

    @property
    def file(self) -> str:
        """The file's path in the repository."""
        return "/".join(self.path.split("/")[2:])

    def open(self) -> FileStack:
        """Open the cached copy, or download one first. Raises `DataError` where there is neither file nor network."""
        return self._file(str(self.cached() or self._download())).open()

    def cached(self) -> Path | None:
        """The copy in the local cache, or None."""
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(
            self.repository, self.file, revision=self.revision, repo_type=self.kind
        )
        return Path(found) if isinstance(found, str) else None

    def _download(self) -> Path:
        import huggingface_hub

        at = (self.repository, self.file)
        try:
            # asked by hand because a download that gets no answer tries again for minutes
            url = huggingface_hub.hf_hub_url(*at, repo_type=self.kind, revision=self.revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
            return Path(
                huggingface_hub.hf_hub_download(*at, repo_type=self.kind, revision=self.revision, etag_timeout=_SECONDS)
            )
        except Exception as error:  # of the hub's client, of the HTTP library below it, of the disk
            raise DataError(self._said(error)) from error

    def _said(self, error: Exception) -> str:
        """Why a file cannot be had: what the hub said of it, or how to fetch it where there is a network."""
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        wrong = {
            RevisionNotFoundError: f"{self.repository} has no revision {self.revision}; give an existing one",
            GatedRepoError: f"{self.repository} is gated; ask for access on the hub, then log in with `hf auth login`",
            RepositoryNotFoundError: f"there is no {self.kind} repository {self.repository} on the hub, or it is "
            "private; correct the name or kind=, or log in with `hf auth login`",
            EntryNotFoundError: f"{self.repository} has no file {self.file} at revision {self.revision}; correct it",
        }
        if not isinstance(error, LocalEntryNotFoundError):
            for kind, said in wrong.items():
                if isinstance(error, kind):
                    return f"hub:{self.path}: {said}"
        revision = "" if self.revision == "main" else f" --revision {self.revision}"
        return (
            f"hub:{self.path} is not in the local cache {HF_HUB_CACHE} and cannot be downloaded ({told(error)}); where "
            f"there is a network, run `hf download {self.repository} {self.file} --repo-type {self.kind}{revision} "
            f"--local-dir .`, bring {Path(self.file).name} here and pass it with --data, or copy the cache folder"
        )

    def _file(self, path: str) -> File:
        return File(path, as_stack=self.as_stack, size=self.size, invert=self.invert)
