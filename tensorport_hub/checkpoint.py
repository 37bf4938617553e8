"""A mirror that is read: a mapping of its tensors' names to lazy arrays.

    checkpoint = open_checkpoint("me/gpt-oss-20b-npy")          # reads manifest.json only
    checkpoint["model.embed_tokens.weight"][1000:1064]          # reads 64 rows

What lies on this machine (a folder, or the Hugging Face cache) is mapped, the rest is read from the Hub by
range, at the commit that was resolved when the checkpoint was opened.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorport_hub import asked
from tensorport_hub.core import manifest
from tensorport_hub.core.digest import differing
from tensorport_hub.core.encode.jax_pickle import JAX_PICKLE
from tensorport_hub.core.layout import frame, is_swapped, stored_in
from tensorport_hub.core.location import FolderLocation, HubLocation
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.mirror import read as read_mirror
from tensorport_hub.core.tensor import shorten
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_source import HubSource
from tensorport_hub.edge.local import parse_folder
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import SourceError, UseError, VerificationError
from tensorport_hub.files import Files
from tensorport_hub.lazy import LazyArray, Piece, Reader
from tensorport_hub.meter import Meter
from tensorport_hub.reading import read_seconds, source_location


def _pieces(mirror: Mirror, form: str) -> dict[str, list[Piece]]:
    """Where the tensors of one format stand: in files of their own, or in shared ones."""
    plan = mirror.plan
    found: dict[str, list[Piece]] = {recipe.name: [] for recipe in plan.recipes}
    for file, entry in zip(plan.outputs, mirror.weights, strict=True):
        if file.format != form:
            continue
        made = frame(plan.recipes, file)
        head = made.segments[0].before
        for segment, offset in zip(made.segments, made.offsets, strict=True):
            piece = file.pieces[segment.entry]
            recipe = plan.recipes[piece.recipe]
            start, stop = (piece.rows[0] + row for row in segment.rows)
            shape = stored_in(recipe, form)
            shape = (stop - start, *shape[1:]) if shape else ()
            swapped = is_swapped(recipe, form)
            found[recipe.name].append(Piece(entry, (start, stop), shape, offset, head, swapped))
    return found


def _chosen(name: str, formats: Sequence[str], form: str | None) -> str:
    """The format to read: the one that was asked for, else the first that is read at all."""
    if form is not None and form not in formats:
        raise UseError(f"`{name}` has no format `{shorten(form)}`: it has {', '.join(formats)}")
    readable = [one for one in formats if one != JAX_PICKLE.name]
    if form == JAX_PICKLE.name or not readable:
        raise UseError(
            f"`{name}` is to be read as `{JAX_PICKLE.name}`, which this tool never does",
            hint="mirror the model in another format too: `--format numpy-direct --format jax-pickle`",
        )
    return form or readable[0]


class Checkpoint(Mapping[str, LazyArray]):
    """A mirror's tensors by name, in the manifest's order. A context manager; safe to use from threads.

    Attributes:
        name: repository id, or the folder's absolute path.
        commit: what is read, whatever happens to the branch; None for a folder.
        format: the one of the mirror's formats that is read.
        manifest: manifest.json, parsed.
    """

    def __init__(
        self, name: str, commit: str | None, mirror: Mirror, files: Files, form: str | None = None
    ) -> None:
        self.name, self.commit, self.manifest = name, commit, mirror.text
        self.format = _chosen(name, mirror.plan.options.formats, form)
        self._files = mirror.files
        self._reader = Reader(files)
        pieces = _pieces(mirror, self.format)
        recipes = {recipe.name: recipe for recipe in mirror.plan.recipes}
        self._arrays = {
            name: LazyArray(recipes[name], pieces[name], self._reader) for name in mirror.text["tensors"]
        }

    def __getitem__(self, name: str) -> LazyArray:
        if name not in self._arrays:
            close = difflib.get_close_matches(str(name), self._arrays, 1)
            hint = f": did you mean `{shorten(close[0])}`?" if close else ""
            raise KeyError(f"`{shorten(name)}` is no tensor of `{self.name}`{hint}")
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def read_file(self, path: str) -> bytes:
        """A small file of the mirror (`config.json`, `tokenizer.json`), compared with its sha256.

        In a mirror of several formats it may also be one in the folder of the format that is read.

        Raises:
            UseError: the mirror has no such file.
            SourceError, VerificationError: as when an array is read.
        """
        entry = self._files.get(path) or self._files.get(f"{self.format}/{path}")
        if entry is None:
            raise UseError(f"`{self.name}` has no file `{shorten(path)}`")
        return self._reader.files.read(entry)

    def close(self) -> None:
        """Give connections back; arrays that were read stay as they are, lazy ones can't be read any more."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        at = f" at {self.commit[:12]}" if self.commit else ""
        return f"<{type(self).__name__} `{self.name}`{at}: {len(self)} tensors>"


def open_checkpoint(
    repo_or_folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    verify: bool = False,
    format: str | None = None,
) -> Checkpoint:
    """Open a mirror for reading; only its manifest.json is read now.

    Args:
        repo_or_folder: `org/name`, `org/name@revision`, or a folder.
        revision: branch, tag or commit; resolved once, now.
        token: by default the one that you are logged in with.
        verify: compare the sha256 of each file with the manifest's, once, before its first use. A file that
            is not on this machine is downloaded once more for it.
        format: which of a mirror's formats to read; by default the first. All give the same arrays.

    Returns:
        Name -> lazy array. Files that lie in the Hugging Face cache are read there, and with
        `HF_HUB_OFFLINE` everything is.

    Raises:
        UseError: it is no repository id and no folder, or a mirror without that format, or of pickles.
        SourceError: it can't be reached or read.
        VerificationError: it has no manifest, or one that contradicts itself or is of an unknown format.
    """
    location = source_location(asked.place(repo_or_folder, "repo_or_folder"), revision)
    if isinstance(location, FolderLocation):
        root = parse_folder(location.path)
        return _open_folder(str(root), None, root, verify=verify, form=format)
    if location.subfolder is not None:
        raise UseError(f"`{repo_or_folder}` names a folder in a repository: a mirror is opened whole")
    client = HubClient(token=token)
    if client.offline:
        manifest_file = client.find_cached(location.repo_id, manifest.PATH, location.revision or "main")
        if manifest_file is None:
            raise SourceError(
                f"`{location.repo_id}` is not in the Hugging Face cache",
                hint="`HF_HUB_OFFLINE` is set, so the Hub is not asked",
            )
        root = manifest_file.parent
        return _open_folder(location.repo_id, root.name, root, verify=verify, form=format)
    return _open_repository(client, location, verify=verify, form=format)


def _open_folder(name: str, commit: str | None, root: Path, *, verify: bool, form: str | None) -> Checkpoint:
    """A folder, or a snapshot of the Hugging Face cache."""
    if not root.is_dir():
        raise SourceError(f"`{root}` is no folder")
    try:
        data = _read(root / manifest.PATH)
    except FileNotFoundError:
        raise _no_mirror(name) from None
    except OSError as error:
        raise SourceError(f"`{root / manifest.PATH}` can't be read: {error.strerror}") from None
    return Checkpoint(name, commit, read_mirror(data), Files(name, root.joinpath, None, verify=verify), form)


def _open_repository(
    client: HubClient, location: HubLocation, *, verify: bool, form: str | None
) -> Checkpoint:
    """A repository on the Hub; what its cache holds of the same commit is not downloaded again."""
    meter, name = Meter(None), location.repo_id
    state = retried(lambda: client.repo_state(name, location.revision, SourceError), meter)
    source = HubSource(client, state, read_seconds=read_seconds(), report=meter)

    def find(path: str) -> Path | None:
        return client.find_cached(name, path, state.commit)

    try:
        mirror = read_mirror(_manifest(source, name, find(manifest.PATH)))
        return Checkpoint(name, state.commit, mirror, Files(name, find, source, verify=verify), form)
    except BaseException:
        source.close()
        raise


def _manifest(source: HubSource, name: str, cached: Path | None) -> bytes:
    """The manifest's bytes, as the Hub states their digest."""
    listed = next((file for file in source.files if file.path == manifest.PATH), None)
    if listed is None:
        raise _no_mirror(name)
    manifest.check_size(listed.size)
    if cached is not None:
        data = _read(cached)
    else:
        buffer = bytearray(listed.size)
        source.read_into(manifest.PATH, 0, memoryview(buffer))
        data = bytes(buffer)
    if (found := differing(listed, data)) is not None:
        raise VerificationError(
            f"`{manifest.PATH}` of `{name}` came damaged: expected digest {found[0]}, got {found[1]}"
        )
    return data


def _read(path: Path) -> bytes:
    """A manifest on this machine, unless it is too large to be one."""
    manifest.check_size(path.stat().st_size)
    return path.read_bytes()


def _no_mirror(name: str) -> VerificationError:
    return VerificationError(
        f"`{name}` has no `{manifest.PATH}`",
        hint="it is no mirror that this tool made: `tensorport-hub mirror` makes one of a model",
    )
