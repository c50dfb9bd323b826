"""The source `hub`: files on the Hugging Face hub, downloaded once, then read from the local cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cryobench.core import Source
from cryobench.errors import ParameterError
from cryobench.extras import of_extra
from cryobench.io.hub import TIMEOUT, Repository
from cryobench.sources.stacks import File, FileStack

_PATH = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^/\s][^\s]*)")


@dataclass(frozen=True)
class Hub(Source):
    """Images of a file on the Hugging Face hub, such as a stack of anon202628/EMPIAR10076_128x128.

    A copy in the local cache is used without a connection to the hub. Give a commit as `revision` to read the same
    images on every machine.
    """

    path: Annotated[str, "OWNER/NAME/FILE on the Hugging Face hub"]
    kind: Annotated[Literal["dataset", "model"], "kind of the repository"] = "dataset"
    revision: Annotated[str, "branch, tag or commit"] = "main"
    size: Annotated[int | None, "resample images to this many pixels a side, as the source `file` does"] = None
    as_stack: Annotated[bool, "read the sections of an MRC volume as images"] = False
    invert: Annotated[bool, "multiply by -1: contrast inversion"] = False

    def __post_init__(self) -> None:
        match = _PATH.fullmatch(self.path)
        if match is None or {"", ".", ".."} & set(self.path.split("/")):
            raise ParameterError(
                f"hub: expected OWNER/NAME/FILE, such as owner/stacks/particles.mrcs, got {self.path!r}"
            )
        if not self.revision.strip():
            raise ParameterError("hub: the revision is empty; give a branch, tag or commit, such as main")
        self._file("")  # raises for an invalid size

    @property
    def repository(self) -> str:
        """OWNER/NAME."""
        return "/".join(self.path.split("/")[:2])

    @property
    def file(self) -> str:
        """The file's path in the repository."""
        return "/".join(self.path.split("/")[2:])

    def open(self) -> FileStack:
        """Open the cached copy, or download it first. Raises `DataError` for a failed download."""
        return self._file(str(self.cached() or self._download())).open()

    def cached(self) -> Path | None:
        """The copy in the local cache, or None."""
        return self._repository.cached(self.file)

    def _download(self) -> Path:
        with of_extra("diffusion"):
            import huggingface_hub

        at = (self.repository, self.file)
        try:
            # a separate request, since a download without an answer is retried for minutes
            url = huggingface_hub.hf_hub_url(*at, repo_type=self.kind, revision=self.revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
            return Path(
                huggingface_hub.hf_hub_download(*at, repo_type=self.kind, revision=self.revision, etag_timeout=TIMEOUT)
            )
        except Exception as error:  # from the hub's client, the HTTP library or the disk
            fetch = (
                f"run `hf download {self.repository} {self.file} --repo-type {self.kind}"
                f"{self._repository.revision_option} --local-dir .`, copy {Path(self.file).name} here and pass it "
                "with --data, or copy the cache folder"
            )
            what = f"hub:{self.path}"
            raise self._repository.refused(what, error, fetch=fetch, file=self.file, naming="name or kind=") from error

    @property
    def _repository(self) -> Repository:
        return Repository(self.repository, self.kind, self.revision)

    def _file(self, path: str) -> File:
        return File(path, as_stack=self.as_stack, size=self.size, invert=self.invert)
