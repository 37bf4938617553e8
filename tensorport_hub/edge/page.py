"""A page for people on this machine: checked before a run that may take hours, written at its end.

It comes whole or not at all: a neighbour is written, flushed and renamed.
"""

from __future__ import annotations

import os
from pathlib import Path

from tensorport_hub.errors import UseError


class Page:
    """Where a page is to be written.

    Raises:
        UseError: nothing can be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path)).absolute()
        folder = self.path.parent
        if "\0" in str(self.path):
            raise UseError(f"report `{path}` is the name of no file: it holds a NUL")
        if os.path.exists(self.path) and not os.path.isfile(self.path):  # a device would be replaced
            raise UseError(f"report `{path}` exists and is no file: expected the name of one")
        if not os.path.isdir(folder):
            raise UseError(f"report `{path}`: there is no folder `{folder}`", hint="make it first")
        if not os.access(folder, os.W_OK):
            raise UseError(f"report `{path}`: folder `{folder}` may not be written to")

    def refuse_inside(self, folder: Path) -> None:
        """Refuse a page inside of a mirror: that holds what its manifest lists, and nothing besides."""
        if folder.resolve() in self.path.resolve().parents:
            raise UseError(f"report `{self.path}` lies in the mirror `{folder}`", hint="write it elsewhere")

    def write(self, text: str) -> None:
        """Write the page in the place of what is there.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(beside, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
