"""The Hugging Face hub: files in its local cache, and the errors of failed downloads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryobench.errors import DataError, ParameterError, described, reason_of
from cryobench.extras import of_extra

TIMEOUT = 5.0
"""Seconds after which the hub counts as unreachable."""


@dataclass(frozen=True)
class Repository:
    """A repository at a revision: a branch, tag or commit. name: OWNER/NAME."""

    name: str
    kind: Literal["dataset", "model"] = "model"
    revision: str = "main"

    @property
    def revision_option(self) -> str:
        """The option of `hf download` for this revision, '' for the main branch."""
        return "" if self.revision == "main" else f" --revision {self.revision}"

    def cached(self, file: str) -> Path | None:
        """The copy of a file in the local cache, or None. Raises `ParameterError` for an invalid repository name."""
        with of_extra("diffusion"):
            import huggingface_hub

        try:
            found = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.revision, repo_type=self.kind)
        except huggingface_hub.errors.HFValidationError as error:
            raise ParameterError(f"{self.name} cannot be a repository on the hub: {reason_of(error)}") from error
        return Path(found) if isinstance(found, str) else None

    def refused(
        self, what: str, error: Exception, *, fetch: str, file: str = "", naming: str = "name", lack: str = ""
    ) -> DataError:
        """The error for a failed download of `what`: the hub's answer, or how to download it on another machine.

        fetch: instructions for a machine with a network. naming: the parameters that name the repository. lack: why
        the files in the local cache are not sufficient, '' if there are none.
        """
        answer = self._answer(error, file, naming)
        if answer:
            return DataError(f"{what}: {answer}")
        if lack:
            there = f"{lack} in the local cache {_cache()}, and the rest cannot be downloaded"
        else:
            there = f"{what} is not in the local cache {_cache()} and cannot be downloaded"
        return DataError(f"{there} ({described(error)}); on a machine with a network, {fetch}")

    def _answer(self, error: Exception, file: str, naming: str) -> str | None:
        """The hub's answer, and what to do; None if it did not answer."""
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        wrong = {
            RevisionNotFoundError: f"{self.name} has no revision {self.revision}; give an existing one",
            GatedRepoError: f"{self.name} is gated; ask for access on the hub, then log in with `hf auth login`",
            RepositoryNotFoundError: f"there is no {self.kind} repository {self.name} on the hub, or it is private; "
            f"correct the {naming}, or log in with `hf auth login`",
            EntryNotFoundError: f"{self.name} has no file {file} at revision {self.revision}; correct the name",
        }
        if isinstance(error, LocalEntryNotFoundError):
            return None
        return next((answer for kind, answer in wrong.items() if isinstance(error, kind)), None)


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE
