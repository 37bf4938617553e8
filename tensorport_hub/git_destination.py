"""A branch of a git remote with LFS as a destination: what it holds, and how it is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from tensorport_hub.core import manifest, proof, resync
from tensorport_hub.core.digest import parse_pointer, pointer_oid
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Progress
from tensorport_hub.core.tensor import shorten
from tensorport_hub.destination import Opened, Publication, readable, refuse_other
from tensorport_hub.edge.git import Git
from tensorport_hub.edge.git_lfs import GitObjects
from tensorport_hub.edge.git_remote import HEADS, GitRemote, Tree, Update
from tensorport_hub.edge.git_sink import ATTRIBUTES, GitSink, attributes
from tensorport_hub.edge.git_work import GitWork, work_ref
from tensorport_hub.edge.journal import Unkept
from tensorport_hub.edge.ref_journal import RefJournal, checkpoints_of
from tensorport_hub.errors import DestinationError, LimitError, UseError
from tensorport_hub.ports import Published, Receipt, Report, Warned

_LARGE_OBJECT, _LARGEST_OBJECT = 2_000_000_000, 5_000_000_000
"""Bytes of an LFS object that GitHub takes on its free plan, and on any."""

_GITHUB = re.compile(r"^(https?://|git@|ssh://([^/@]*@)?)(www\.)?github\.com[:/]")


class GitDestination:
    """One branch of a git remote.

    Raises:
        DestinationError: it holds something that we did not make, can't be reached or written, or who may
            read it is not known and the source is closed.
    """

    private: bool | None = None
    streams = False
    stages = True

    def __init__(
        self, url: str, publication: Publication, *, source: str, closed: bool, report: Report
    ) -> None:
        self._publication, self._report = publication, report
        self.name = url
        self._refuse(source, closed)
        with ExitStack() as undo:
            git = Git(url)
            undo.callback(git.close)
            self._git = git
            self._remote = GitRemote(git, report)
            self._objects = GitObjects(self._remote, max_disk=publication.max_disk)
            self._author = publication.author or git.author()
            self._look()
            self._remote.check_writable(self._author)
            undo.pop_all()
        self.exists = self._there.commit is not None
        self.inherited = Progress()

    def _refuse(self, source: str, closed: bool) -> None:
        publication = self._publication
        if publication.create_pr:
            raise UseError("`--pr` is of the Hub, a git remote has no pull requests", hint="use `--branch`")
        if publication.transfer == "xet":
            raise UseError("`--transfer xet` is of the Hub, a git remote takes LFS")
        if publication.branch is not None and publication.branch.startswith("tensorport/"):
            raise UseError(f"branch `{publication.branch}` is where interrupted runs are kept")
        known = publication.private or publication.i_have_rights or self.name.startswith("file://")
        if closed and not known:
            raise DestinationError(
                f"`{source}` is gated or private, and who may read `{self.name}` can't be seen from here",
                hint="`--private` says that it is closed; `--i-have-rights` if you may publish it",
            )

    def _look(self) -> None:
        """The branch that readers see, or that it begins from."""
        refs, default = self._remote.refs()
        standard = default or (f"{HEADS}main" if refs else self._remote.unborn())
        branch = self._publication.branch
        self._ref = f"{HEADS}{branch}" if branch is not None else standard
        base = self._ref if self._ref in refs else standard
        self._refs = refs
        self._there = self._remote.tree(base) if base in refs else Tree()
        self._tip = self._there.commit if base == self._ref else None
        self._refuse_strangers()

    def _refuse_strangers(self) -> None:
        paths = self._there.files.keys()
        self._manifest = self._read_manifest() if manifest.PATH in self._there.regular else b""
        if paths <= {ATTRIBUTES}:
            return
        if not manifest.is_mirror(self._manifest):
            raise DestinationError(
                f"`{self.name}` is no mirror of ours: it holds {len(paths)} files",
                hint="use an empty repository",
            )
        there = readable(self._manifest)
        strange = sorted(paths - there.files.keys() - proof.UNLISTED) if there is not None else []
        if strange and not self._publication.restart:
            raise DestinationError(
                f"`{self.name}` holds {len(strange)} files that are not of the mirror, among them"
                f" `{shorten(strange[0])}`",
                hint="move them elsewhere; `--restart` makes the mirror anew without them",
            )

    def _read_manifest(self) -> bytes:
        """The manifest that stands on the branch, whole; an LFS file too.

        Raises:
            VerificationError: it is too large to be one.
            LimitError: it does not fit the staging space.
        """
        path, most = manifest.PATH, self._publication.max_disk
        manifest.check_size(self._remote.sizes(self._there, [path])[0])
        content = self._remote.read(self._there, [path])[0]
        pointed = parse_pointer(content)
        if pointed is None:
            return content
        sha256, size = pointed
        manifest.check_size(size)
        if size > most:
            raise LimitError(
                f"`{path}` of `{self.name}` does not fit the staging space: expected at most {most} bytes,"
                f" got {size}",
                hint="raise `--max-disk`",
            )
        with self._objects.fetch(Receipt(path, size, sha256)) as file:
            return file.read()

    def check(self, plan: Plan, key: str, paths: Sequence[str]) -> None:
        if self._tip is not None and self._manifest and not self._publication.restart:
            refuse_other(plan, self._manifest, self.name, lambda: self._is_begun_anew(key))
        there = None if self._publication.restart else readable(self._manifest)
        self.inherited = resync.inherited(plan, there) if there is not None else Progress()
        largest = max(plan.outputs, key=lambda file: file.size, default=None)
        if largest is None:
            return
        if plan.bytes_at_once > self._publication.max_disk:
            raise LimitError(
                "files that are written at the same time do not fit the staging space: expected at most"
                f" {self._publication.max_disk} bytes, got {plan.bytes_at_once}",
                hint="raise `--max-disk`, or lower `--shard-size`",
            )
        if _GITHUB.search(self.name) and largest.size > _LARGEST_OBJECT:
            raise LimitError(
                f"`{largest.path}` has {largest.size} bytes: expected at most {_LARGEST_OBJECT} on GitHub",
                hint="lower `--shard-size`",
            )
        if largest.size >= _LARGE_OBJECT:
            self._report(
                Warned(
                    f"`{largest.path}` has {largest.size:,} bytes: many hosts take LFS files below 2 GB only"
                )
            )

    def checkpoints(self, plan: Plan) -> int | None:
        left = [file.size for file in plan.outputs if file.index not in self.inherited.made]
        return checkpoints_of(sum(left), len(left), every=self._publication.checkpoint_every)

    def standing(self, plan: Plan, key: str) -> tuple[Mirror, Published] | None:
        if self._tip is None or not self._manifest:
            return None
        there = readable(self._manifest)
        if there is None or not proof.is_of(there, plan) or not self._is_whole(there):
            return None
        if self._is_begun_anew(key):
            return None
        return there, Published(self.name, self._tip, None, changed=False)

    def _is_whole(self, there: Mirror) -> bool:
        """Whether the branch holds what its manifest lists, and the LFS server too."""
        files = self._there.files
        if files.keys() - proof.UNLISTED != there.files.keys():
            return False
        large = []
        for path, entry in there.files.items():
            if files[path] == pointer_oid(entry.sha256, entry.size):
                large.append(Receipt(path, entry.size, entry.sha256))
            elif files[path] != entry.git_oid:
                return False
        return not self._objects.missing(large)

    def open(self, plan: Plan, key: str, *, writers: int, uploads: int) -> Opened:
        publication = self._publication
        self._look_again()
        work = self._claimed(plan, key)
        anew = publication.restart or (work is not None and work.anew)
        paths = {file.index: file.path for file in plan.outputs}
        standing = frozenset(self._there.files.values())
        inherited = _receipts(Progress() if anew else self.inherited, paths)
        named = [r for r in inherited if pointer_oid(r.sha256, r.size) in standing]
        journal: RefJournal | Unkept = Unkept()
        if work is not None:
            journal = RefJournal(work, outputs=paths, every=publication.checkpoint_every, report=self._report)
            named += work.named(_receipts(journal.progress, paths))
        lost = frozenset(self._objects.missing(named))
        sink = GitSink(
            self._remote,
            self._objects,
            self._there,
            Update(self._ref, self._tip, None),
            work,
            journal,
            held=(receipt for receipt in named if receipt not in lost),
            message=publication.title(plan),
            author=self._author,
        )
        return Opened(sink, journal, anew)

    def _look_again(self) -> None:
        """Much may have happened since the plan was made.

        Raises:
            DestinationError: what was planned from is not there any more.
        """
        planned = self._there
        self._look()
        there = self._there
        begun = planned.commit is None and there.files.keys() <= {ATTRIBUTES}  # by a run like this one
        if there.commit != planned.commit and not begun:
            raise DestinationError(
                f"`{self.name}` moved since the plan was made: expected"
                f" {planned.commit or 'no commit'}, got {there.commit or 'none'}",
                hint="somebody else writes there; run again",
            )

    def _claimed(self, plan: Plan, key: str) -> GitWork | None:
        """The work branch, where one is there or needed."""
        restart, needed = self._publication.restart, self.checkpoints(plan) is not None
        if not needed and not self._is_kept(key):
            return None
        if not self._refs:  # hosts make the first branch that they get the one that readers see
            self._begin()
        work = self._work(key)
        if restart and not needed:
            work.drop()
            return None
        work.claim(restart=restart)
        return work

    def _is_kept(self, key: str) -> bool:
        """Whether an earlier run left a work branch, as far as was last looked."""
        return work_ref(key, self._publication.branch) in self._refs

    def _is_begun_anew(self, key: str) -> bool:
        """Whether a run that was to make everything itself was interrupted."""
        return self._is_kept(key) and self._work(key).is_begun_anew()

    def _work(self, key: str) -> GitWork:
        ref = work_ref(key, self._publication.branch)
        return GitWork(self._remote, self._objects, key, ref=ref, author=self._author)

    def _begin(self) -> None:
        """The first commit of an empty repository: it holds nothing for readers."""
        first = {ATTRIBUTES: attributes([])}
        commit = self._remote.commit(Tree(), first, message="Begin", author=self._author)
        self._remote.push(Update(self._ref, None, commit))
        self._look()

    def close(self) -> None:
        self._git.close()


def _receipts(progress: Progress, paths: Mapping[int, str]) -> list[Receipt]:
    return [Receipt(paths[made.index], made.size, made.sha256) for made in progress.made.values()]
