"""Where a mirror goes: what stands there now, and the sink and journal that change it.

One class a kind of destination. Everything that can be refused is refused before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tensorport_hub.core import manifest, mirror, proof, resync
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Progress
from tensorport_hub.core.tensor import shorten
from tensorport_hub.edge.local_sink import LocalSink, listing
from tensorport_hub.edge.target import check_folder, check_place
from tensorport_hub.errors import DestinationError, TensorportError, UseError
from tensorport_hub.ports import Journal, Published, Sink

_AUTHOR = re.compile(r"[^<>\x00-\x1f]*[^<>\s] <[^<>\x00-\x20]+>")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """How the result is published, and what becomes of an interrupted run's leavings.

    Attributes:
        private: visibility of a new repository, which one that exists must have; None: as the source's.
        i_have_rights: a gated or private source may be published openly.
        transfer: `auto`, `xet` or `lfs`.
        message: of the commit; None: a sentence that names the source.
        create_pr: leave an open pull request.
        branch: publish there instead of on `main`.
        restart: give up what an interrupted run left.
        checkpoint_every: bytes that a crash may cost.
        max_disk: bytes that may be staged.
        author: of a git remote's commits, as `Name <mail>`; None: as git is configured.
    """

    private: bool | None
    i_have_rights: bool
    transfer: str
    message: str | None
    create_pr: bool
    branch: str | None
    restart: bool
    checkpoint_every: int
    max_disk: int
    author: str | None = None

    def __post_init__(self) -> None:
        if self.transfer not in ("auto", "xet", "lfs"):
            raise UseError(f"`{self.transfer}` is no transfer: expected one of `auto`, `xet`, `lfs`")
        if self.create_pr and self.branch is not None:
            raise UseError("`--pr` and `--branch` exclude each other: pull requests go to `main`")
        if self.checkpoint_every < 1:
            raise UseError("`--checkpoint-every` must be positive")
        if self.author is not None and not _AUTHOR.fullmatch(self.author):
            raise UseError(f"`{self.author}` is no author: expected `Name <mail>`")

    def title(self, plan: Plan) -> str:
        """The first line of what the commit says."""
        said = (self.message or "").strip()
        return said or f"Mirror {plan.repo or 'a local checkpoint'} at {plan.commit[:12]}"


@dataclass(frozen=True)
class Opened:
    """A destination that is written to.

    Attributes:
        anew: this run, or the one that it continues, is to make everything itself, whatever stands.
        published: an interrupted run had finished all but the publication, and that was done now.
    """

    sink: Sink
    journal: Journal
    anew: bool
    published: tuple[Mirror, Published] | None = None


class Destination(Protocol):
    """A place that a mirror can be published to."""

    name: str
    exists: bool
    private: bool | None
    """Whether the result will be closed; None where that means nothing."""
    streams: bool
    """Whether bytes go out as they come, so that a writer buffers much but the disk holds nothing."""
    stages: bool
    """Whether files wait on the disk before they go out."""
    inherited: Progress
    """What stands here of the plan that was checked, made by another: neither read nor sent again."""

    def check(self, plan: Plan, key: str, paths: Sequence[str]) -> None:
        """Refuse a plan that this place can't hold, and learn what it has of it.

        Args:
            key: names the plan.
            paths: all files of the mirror.

        Raises:
            DestinationError: what stands here is the mirror of another source (`inherited`).
        """

    def checkpoints(self, plan: Plan) -> int | None:
        """About how many checkpoints a run makes before it publishes; None: one commit does it all."""

    def standing(self, plan: Plan, key: str) -> tuple[Mirror, Published] | None:
        """What stands here, where it is what the plan makes: complete, undamaged, not being made anew.

        Raises:
            DestinationError: it is not, and could not be made here.
        """

    def open(self, plan: Plan, key: str, *, writers: int, uploads: int) -> Opened:
        """Begin, or continue what an interrupted run of the plan `key` left.

        Args:
            writers: files that may be open at once, besides small ones.
            uploads: of them that are under way at a time, where what is sent is held till it arrived.
        """

    def close(self) -> None:
        """Give back what was held to look; never raises."""


class FolderDestination:
    """A folder of this machine."""

    private: bool | None = None
    streams = stages = False

    def __init__(self, path: Path, publication: Publication) -> None:
        self._path, self._publication = path, publication
        self.inherited = Progress()
        self._standing: Mapping[str, str] = {}
        self.name = str(path)
        with self._looking():
            self.exists = path.exists()
            check_folder(path)
        if publication.create_pr or publication.branch is not None:
            raise UseError(f"`{path}` is a folder: it has no branches and no pull requests")

    def check(self, plan: Plan, key: str, paths: Sequence[str]) -> None:
        """A folder holds everything that the disk has room for."""
        data = None if self._publication.restart else self._manifest()
        if data is None:
            return
        refuse_other(plan, data, self.name, lambda: LocalSink.is_begun_anew(self._path))
        if there := readable(data):
            self.inherited = resync.inherited(plan, there)
            self._standing = {entry.sha256: entry.path for entry in there.weights}

    def checkpoints(self, plan: Plan) -> int | None:
        return len(plan.outputs)

    def standing(self, plan: Plan, key: str) -> tuple[Mirror, Published] | None:
        there = self._whole(plan)
        if there is None:
            check_place(self._path)
            return None
        return there, Published(self.name, None, None, changed=False)

    def _whole(self, plan: Plan) -> Mirror | None:
        """The plan's mirror, where all of it stands there."""
        data = self._manifest()
        with self._looking():
            if data is None or LocalSink.is_begun_anew(self._path):
                return None
            there = whole(data, listing(self._path, hashed=False), plan)
            if there is None or proof.check_files(there, listing(self._path, hashed=True)):
                return None
        return there

    def open(self, plan: Plan, key: str, *, writers: int, uploads: int) -> Opened:
        outputs = range(len(plan.outputs))
        sink = LocalSink(
            self._path,
            key=key,
            outputs=outputs,
            standing=self._standing,
            restart=self._publication.restart,
        )
        try:
            data = None if sink.anew else self._manifest()
            if data is not None:  # a run that held the lock may have ended since the plan
                refuse_other(plan, data, self.name)
        except BaseException:
            sink.close()
            raise
        return Opened(sink, sink.journal, sink.anew)

    def close(self) -> None:
        """Nothing is held."""

    def _manifest(self) -> bytes | None:
        """What stands there.

        Raises:
            VerificationError: it is too large to be a manifest.
        """
        found = self._path / manifest.PATH
        with self._looking():
            if not found.is_file():
                return None
            manifest.check_size(found.stat().st_size)
            return found.read_bytes()

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """What the system refuses to show of the folder, as ours."""
        try:
            yield
        except OSError as error:
            raise DestinationError(
                f"`{error.filename or self._path}` can't be read: {error.strerror}",
                hint="choose another folder, or change the permissions of this one",
            ) from None


def refuse_other(plan: Plan, data: bytes, name: str, is_anew: Callable[[], bool] | None = None) -> None:
    """Refuse to replace the mirror of another source; of two folders nothing tells whether they differ.

    Args:
        data: the manifest that stands at the destination `name`.
        is_anew: says whether a run of `--restart` is continued, which may replace it.

    Raises:
        DestinationError: one of the two was made of another repository, or one of a folder.
    """
    there, mine = manifest.source_repo(data), plan.repo or ""
    if there is None or there.lower() == mine.lower() or (is_anew is not None and is_anew()):
        return
    told = [f"`{shorten(repo)}`" if repo else "a local folder" for repo in (there, mine)]
    raise DestinationError(
        f"`{name}` holds the mirror of {told[0]}, not of {told[1]}",
        hint="choose another destination, or `--restart` to replace it",
    )


def readable(data: bytes) -> Mirror | None:
    """The mirror that a manifest describes; None where this version can't read it."""
    try:
        return mirror.read(data)
    except TensorportError:
        return None


def whole(data: bytes, files: Sequence[SourceFile], plan: Plan) -> Mirror | None:
    """The mirror that a manifest describes, where it is the plan's and a listing shows all of it."""
    there = readable(data)
    if there is None or not proof.is_of(there, plan) or proof.check_files(there, files):
        return None
    return there
