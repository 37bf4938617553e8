"""The folder that a mirror goes to: what may stand there, and whether another one can take its place.

A mirror is made beside its folder and swapped in as a whole (`local_sink`): the parent must be one that can
be written, and the folder none that the system holds where it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from tensorport_hub.core.manifest import PATH, check_size, listed_files
from tensorport_hub.errors import DestinationError

WHERE = "choose a folder whose parent can be written, and which is no mount point"
"""The hint of every refusal of a place."""


def followed(target: Path) -> Path:
    """The folder itself, where the target is a link to it."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def check_place(target: Path) -> None:
    """Refuse a folder that no other can be swapped with: that is where a mirror is made, beside it."""
    target = followed(target)
    above = next(folder for folder in target.parents if folder.exists())
    for folder in (above, target):
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise DestinationError(
                f"`{target}` can't be made: `{folder}` is no folder that can be written", hint=WHERE
            )
    if os.path.ismount(target):
        raise DestinationError(
            f"`{target}` is a mount point: no finished mirror can take its place", hint=WHERE
        )


def check_folder(target: Path) -> None:
    """Only an empty folder, or a mirror of ours with nothing else in it, may be replaced.

    Raises:
        DestinationError: it is neither.
        VerificationError: its manifest is too large to be read.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise DestinationError(f"destination `{target}` exists and is no folder")
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if _is_entry(path)}
    if not found:
        return
    manifest, listed = target / PATH, None
    if manifest.is_file():
        check_size(manifest.stat().st_size)
        listed = listed_files(manifest.read_bytes())
    if listed is None:
        is_git = {"HEAD", "config"} <= found and (target / "objects").is_dir()
        raise DestinationError(
            f"destination `{target}` is not empty and holds no mirror of ours",
            hint=f"as a git repository it is `git+file://{target}`" if is_git else "choose an empty folder",
        )
    strangers = sorted(found - listed - {PATH})
    if strangers:
        raise DestinationError(
            f"destination `{target}` holds {len(strangers)} files that its manifest does not list,"
            f" the first is `{strangers[0]}`",
            hint="they would be lost: move them away first",
        )


def _is_entry(path: Path) -> bool:
    """Whether something would be lost with it: anything but a folder; a link to one is an entry too."""
    return path.is_symlink() or not path.is_dir()
