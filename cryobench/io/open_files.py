"""Files that stay open between reads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

from cryobench.io.image_files import ImageFile, changed

MAX_OPEN = 8
"""Maximum number of open files: a table may list thousands, and a process may open a limited number."""
Reader = TypeVar("Reader")


class OpenFiles(Generic[Reader]):
    """The readers of the files that were used last. A reader that is dropped closes its file after its last use.

    open_file: opens a file. Threads may share the readers.
    """

    def __init__(self, open_file: Callable[[ImageFile], Reader]):
        self._open_file = open_file
        self._open: OrderedDict[Hashable, Reader] = OrderedDict()
        self._opening = Lock()

    def reader(self, key: Hashable, file: Callable[[], ImageFile]) -> Reader:
        """The reader of the file of this key. Raises `DataError` for a file that changed since its header was read."""
        with self._opening:
            if key not in self._open:
                try:
                    self._open[key] = self._open_file(file())
                except (OSError, ValueError) as error:  # deleted since its header was read
                    raise changed(file().path) from error
            self._open.move_to_end(key)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            return self._open[key]
