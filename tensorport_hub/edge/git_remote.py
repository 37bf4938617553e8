"""A git remote: its branches, what a commit holds, and commits that move a branch from a known place.

As little as possible is fetched: one commit and its trees, without blobs where the server can leave them out;
git fetches the few that are read. A commit is made without index and work tree, by `fast-import`. A push
names the commit that it found, so a branch that moved is never overwritten; where the outcome is unknown,
the remote is asked.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tensorport_hub.edge.git import Ended, Git, failure
from tensorport_hub.edge.retry import ATTEMPTS, pause, retried
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Report

HEADS = "refs/heads/"
_MADE = "refs/tensorport/made"
_REGULAR = ("100644", "100755")


class Moved(DestinationError):
    """A branch is not where it was found: somebody else wrote there."""

    def __init__(self, name: str, update: Update, now: str | None) -> None:
        super().__init__(
            f"branch `{_short(update.ref)}` of `{name}` moved meanwhile: expected commit {update.old},"
            f" got {now}",
            hint="somebody else writes there; run again",
        )
        self.ref = update.ref


@dataclass(frozen=True)
class Tree:
    """What one commit holds: path -> blob id; of what is no regular file, its mode too.

    Attributes:
        commit: None where there is no commit yet.
    """

    commit: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def regular(self) -> list[str]:
        """Paths of regular files."""
        return [path for path, oid in self.files.items() if " " not in oid]


@dataclass(frozen=True)
class Update:
    """A ref's way from the commit where it must be now to another; None: there is no such ref."""

    ref: str
    old: str | None
    new: str | None


class GitRemote:
    """The remote of one `Git`.

    Attributes:
        name: it, for people.
    """

    def __init__(self, git: Git, report: Report) -> None:
        self.git, self.report = git, report
        self.name = git.url

    def refs(self) -> tuple[Mapping[str, str], str | None]:
        """All branches by their full name, and which one is the default."""
        said = self._asked(
            "ls-remote",
            "--symref",
            "origin",
            "HEAD",
            f"{HEADS}*",
            doing=f"asking `{self.name}` for its branches",
        )
        found: dict[str, str] = {}
        default = None
        for line in said.decode("utf-8", "surrogateescape").splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: "):
                default = value.removeprefix("ref: ")
            elif name.startswith(HEADS):
                found[name] = value
        return found, default

    def unborn(self) -> str:
        """Which branch an empty remote calls its default, where it says so."""
        with tempfile.TemporaryDirectory(dir=self.git.folder) as empty:
            words = ("-c", "init.defaultBranch=main", "clone", "--quiet", "--bare", "--template=")
            self._asked(*words, self.git.url, empty, doing=f"looking into `{self.name}`")
            head = self.git.ask(f"--git-dir={empty}", "symbolic-ref", "HEAD", doing="reading a ref")
        return head.decode().strip()

    def tree(self, revision: str, *, blobs: bool = False) -> Tree:
        """Fetch one commit: a ref, or a commit's id; with `blobs` all that it holds.

        Raises:
            DestinationError: there is none, or it can't be had.
        """
        words = [
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
        ]
        words += [] if blobs else ["--filter=blob:none"]
        at = "refs/tensorport/seen"
        self._asked(
            *words, "origin", f"+{revision}:{at}", doing=f"fetching `{_short(revision)}` of `{self.name}`"
        )
        commit = (
            self.git.ask("rev-parse", "--verify", f"{at}^{{commit}}", doing="reading a ref").decode().strip()
        )
        return Tree(commit, self._files(commit))

    def _files(self, commit: str) -> Mapping[str, str]:
        listed = self.git.ask("ls-tree", "-r", "-z", "--full-tree", commit, doing=f"listing {commit}")
        files = {}
        for line in listed.split(b"\0")[:-1]:
            about, _, path = line.partition(b"\t")
            mode, _, oid = about.decode().split(" ")
            files[path.decode("utf-8", "surrogateescape")] = oid if mode in _REGULAR else f"{mode} {oid}"
        return files

    def sizes(self, tree: Tree, paths: Sequence[str]) -> list[int]:
        """The sizes of regular files of a commit; those that are not here yet are fetched."""
        heads = self._objects("--batch-check", tree, paths).splitlines()
        return [self._size(path, head) for path, head in zip(paths, heads, strict=True)]

    def read(self, tree: Tree, paths: Sequence[str]) -> list[bytes]:
        """Regular files of a commit, by one process; those that are not here yet are fetched."""
        said = self._objects("--batch", tree, paths)
        contents = []
        at = 0
        for path in paths:
            begin = said.index(b"\n", at) + 1
            size = self._size(path, said[at : begin - 1])
            contents.append(said[begin : begin + size])
            at = begin + size + 1
        return contents

    def _objects(self, what: str, tree: Tree, paths: Sequence[str]) -> bytes:
        given = "".join(f"{tree.files[path]}\n" for path in paths).encode()
        return retried(
            lambda: self.git.ask("cat-file", what, doing=f"reading files of `{self.name}`", given=given),
            self.report,
            self.git.closed,
        )

    def _size(self, path: str, head: bytes) -> int:
        words = head.split(b" ")
        if len(words) != 3 or words[1] != b"blob":
            raise DestinationError(f"`{path}` of `{self.name}` can't be read: {words[-1].decode()}")
        return int(words[2])

    def commit(
        self,
        parent: Tree,
        changed: Mapping[str, bytes],
        gone: Collection[str] = (),
        *,
        message: str,
        author: str,
    ) -> str:
        """A commit on `parent` with these files and without those; it is here, and nowhere else yet."""
        signed = f"{author} {int(time.time())} +0000"
        text = [
            f"commit {_MADE}\nmark :1\nauthor {signed}\ncommitter {signed}\n".encode(),
            _data(message.encode()),
        ]
        if parent.commit is not None:
            text.append(f"from {parent.commit}\n".encode())
        text += [b"D %s\n" % _quoted(path) for path in sorted(gone)]
        for path, content in sorted(changed.items()):
            text += [b"M 100644 inline %s\n" % _quoted(path), _data(content)]
        text.append(b"\nget-mark :1\ndone\n")
        said = self.git.ask(
            "fast-import", "--quiet", "--force", "--done", doing="making a commit", given=b"".join(text)
        )
        return said.decode().strip()

    def push(self, *updates: Update) -> None:
        """Move all refs, or none.

        Raises:
            Moved: one is not where it must be.
            DestinationError: the remote refuses; nothing has changed.
        """
        for failures in range(1, ATTEMPTS + 1):
            ended = self._pushed(*updates)
            if ended.code == 0:
                return
            now, _ = retried(self.refs, self.report, self.git.closed)
            if all(now.get(update.ref) == update.new for update in updates):
                return
            for update in updates:
                if now.get(update.ref) != update.old:
                    raise Moved(self.name, update, now.get(update.ref))
            error = failure(f"pushing `{_short(updates[0].ref)}` to `{self.name}`", _reasons(ended))
            if not error.transient or failures == ATTEMPTS:
                raise error
            pause(error, failures, self.report, self.git.closed)

    def _pushed(self, *updates: Update, dry: bool = False) -> Ended:
        words = ["push", "--porcelain", "--no-verify", "--no-follow-tags", "--no-signed"]
        words += ["--recurse-submodules=no"]
        words += ["--dry-run"] if dry else []
        words += ["--atomic"] if len(updates) > 1 else []
        words += [f"--force-with-lease={update.ref}:{update.old or ''}" for update in updates]
        return self.git.run(*words, "origin", *(f"{update.new or ''}:{update.ref}" for update in updates))

    def check_writable(self, author: str) -> None:
        """Ask whether this user may push, as far as the remote says so before something comes.

        Raises:
            DestinationError: no.
        """
        nothing = self.commit(Tree(), {}, message="Nothing", author=author)

        def ask() -> None:
            ended = self._pushed(Update(f"{HEADS}tensorport/access", None, nothing), dry=True)
            if ended.code:
                raise failure(f"asking `{self.name}` for leave to push", _reasons(ended))

        retried(ask, self.report, self.git.closed)

    def _asked(self, *words: str, doing: str) -> bytes:
        return retried(lambda: self.git.ask(*words, doing=doing), self.report, self.git.closed)


def _short(ref: str) -> str:
    return ref.removeprefix(HEADS)


def _reasons(ended: Ended) -> str:
    """Why a push failed: what the remote said, and what became of each ref."""
    refs = [line for line in ended.out.decode("utf-8", "replace").splitlines() if line.startswith("!")]
    return "\n".join([ended.said, *(line.partition("\t")[2].replace("\t", " ") for line in refs)])


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def _quoted(path: str) -> bytes:
    """A path as fast-import reads any."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'.encode("utf-8", "surrogateescape")
