"""Digests of large data sets that an earlier run computed, in the cache folder, so that nothing is read to know them.

    CACHE/digests/NAME.npz      one file per source, selection and scaling: the state of its files, and the digests

They are used only while the files have the same size, modification time and inode, and the code that reads them is the
same. An entry that is damaged, or cannot be written, is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryobench.file_state import FileState
from cryobench.files import cache_folder, whole_file

FOLDER = "digests"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Known:
    """The digest of a data set, as hex, and those of its images, uint8 [n, 32]."""

    digest: str
    images: np.ndarray


@dataclass(frozen=True)
class Entry:
    """The place of a data set in the cache. state: a digest of what must not have changed since it was written."""

    path: Path
    state: str

    @staticmethod
    def of(named: str, files: Sequence[FileState], made_by: object) -> Entry:
        """named: identifies source, selection and scaling. made_by: identifies the code that reads the images."""
        name = _sha256((named, [str(file.path) for file in files]))
        return Entry(cache_folder() / FOLDER / f"{name}.npz", _sha256((list(files), made_by)))

    def recall(self, images: int) -> Known | None:
        """What is known of a data set of this many images; None if that is nothing, or its files have changed."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                state, digest, each = str(arrays["state"]), str(arrays["digest"]), arrays["images"]
        except Exception:  # missing, truncated or another format: numpy raises many kinds of errors
            return None
        valid = each.dtype == np.uint8 and each.shape == (images, DIGEST_BYTES) and len(digest) == 2 * DIGEST_BYTES
        return Known(digest, each) if valid and state == self.state else None

    def remember(self, known: Known) -> None:
        """Write an entry, which replaces an earlier one."""
        with contextlib.suppress(OSError):  # the cache cannot be written: the digests are computed again next time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path) as temporary, temporary.open("wb") as file:
                np.savez(file, state=np.array(self.state), digest=np.array(known.digest), images=known.images)


def _sha256(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()
