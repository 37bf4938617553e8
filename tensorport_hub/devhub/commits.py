"""Commits: the ndjson that a client posts, read line by line and made into a commit.

The first line is the header (`summary`, `description`, `parentCommit`); each other one is a `file`
(base64, at most 10 MB), an `lfsFile` (a sha256 whose bytes must be here), a `deletedFile` or a
`deletedFolder`. The body is read from a file and one line is held at a time. Nothing is visible
until the ref moves, in one transaction that checks the parent.

Source: `_prepare_commit_payload` in huggingface_hub's `_commit_api.py`.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tensorport_hub.devhub import gitattributes
from tensorport_hub.devhub.history import Commit
from tensorport_hub.devhub.hub import Hub
from tensorport_hub.devhub.refusals import Refusal, bad_request, entry_not_found
from tensorport_hub.devhub.repos import Repo
from tensorport_hub.devhub.trees import Entry, Snapshot, git_blob_oid, lfs_entry

FOLDER_LIMIT = 10_000
ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class Header:
    """The first line."""

    title: str
    message: str
    parent: str | None


@dataclass
class Draft:
    """The changes of one commit to be, on top of a snapshot."""

    hub: Hub
    repo: Repo
    base: Snapshot
    changes: dict[str, Entry | None] = field(default_factory=dict)

    def entry(self, path: str) -> Entry | None:
        return self.changes[path] if path in self.changes else self.base.files.get(path)

    def put_bytes(self, path: str, data: bytes) -> None:
        """A regular file."""
        blob = self.hub.blobs.objects.put([data])
        self.changes[path] = Entry(path, len(data), git_blob_oid(data), blob.sha256, False, "")

    def put_lfs(self, path: str, sha256: str, size: int) -> None:
        self.changes[path] = lfs_entry(path, sha256, size)

    def read(self, entry: Entry) -> bytes:
        blob = self.hub.blobs.find(entry.sha256)
        assert blob is not None, f"the bytes of {entry.path} are gone"
        return b"".join(blob.read(0, blob.size))

    def rules(self) -> gitattributes.Rules:
        return gitattributes.Rules(self._attributes())

    def _attributes(self) -> str:
        entry = self.entry(ATTRIBUTES)
        return "" if entry is None else self.read(entry).decode(errors="replace")

    def cover_lfs_files(self) -> None:
        """Give every new LFS file that no rule names a rule of its own, as the Hub does."""
        rules = self.rules()
        text = self._attributes()
        bare = [path for path, entry in self.changes.items() if entry and entry.lfs and not rules.lfs(path)]
        for path in bare:
            text = gitattributes.with_rule(text, path)
        if bare:
            self.put_bytes(ATTRIBUTES, text.encode())

    def check_tree(self) -> None:
        """No path is a file and a folder at once; no folder is fuller than the Hub allows."""
        after = self.base.with_changes(self.changes)
        folders: Counter[str] = Counter()
        seen: set[str] = set()
        for path in after.files:
            name = path
            while True:
                folder, _, _ = name.rpartition("/")
                folders[folder] += 1
                if not folder or folder in seen:
                    break
                seen.add(folder)
                name = folder
        for folder in seen:
            if folder in after.files:
                raise bad_request(f"`{folder}` is a file and a folder at once")
        crowded = [folder for folder, count in folders.items() if count > FOLDER_LIMIT]
        if crowded:
            raise bad_request(
                f"Your push was rejected: too many files per directory ({FOLDER_LIMIT} at most): "
                f"`{min(crowded)}` has {folders[min(crowded)]}"
            )


def check_path(path: str) -> str:
    """A path that may stand in a tree."""
    parts = path.split("/")
    if any(part in ("", ".", "..", ".git") for part in parts) or any(
        char < " " or char == "\x7f" for char in path
    ):
        raise bad_request(f"Invalid path `{path}`")
    return path


def read_lines(body: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, value) of each line."""
    for number, line in enumerate(body, 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            yield str(said["key"]), dict(said["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise bad_request(f"Invalid commit: line {number} is not {{key, value}}") from error


def read_header(lines: Iterator[tuple[str, dict[str, Any]]]) -> Header:
    """The first line of a commit request."""
    key, value = next(lines, ("", {}))
    title = value.get("summary")
    if key != "header" or not isinstance(title, str) or not title.strip():
        raise bad_request("Invalid commit: the first line must be a header with a summary")
    return Header(title, str(value.get("description") or ""), value.get("parentCommit") or None)


def read_changes(draft: Draft, lines: Iterator[tuple[str, dict[str, Any]]]) -> None:
    """Carry every line out on the draft."""
    actions: dict[str, Callable[[Draft, str, dict[str, Any]], None]] = {
        "file": _file,
        "lfsFile": _lfs_file,
        "deletedFile": _deleted_file,
        "deletedFolder": _deleted_folder,
    }
    for key, value in lines:
        if key not in actions:
            raise bad_request(f"Invalid commit: unknown key `{key}`")
        actions[key](draft, str(value.get("path", "")), value)
    draft.cover_lfs_files()
    draft.check_tree()


def _file(draft: Draft, path: str, value: dict[str, Any]) -> None:
    check_path(path)
    content = value.get("content", "")
    try:
        data = b64decode(content, validate=True) if value.get("encoding") == "base64" else content.encode()
    except (ValueError, AttributeError) as error:
        raise bad_request(f"`{path}`: content is not base64") from error
    if len(data) > gitattributes.REGULAR_LIMIT:
        raise bad_request(
            "Your push was rejected because it contains files larger than 10 MiB. "
            f"Please use https://git-lfs.github.com/ to store large files. Offending files: - {path}"
        )
    draft.put_bytes(path, data)


def _lfs_file(draft: Draft, path: str, value: dict[str, Any]) -> None:
    check_path(path)
    sha256, size = str(value.get("oid", "")), value.get("size")
    if value.get("algo", "sha256") != "sha256" or len(sha256) != 64:
        raise bad_request(f"`{path}`: expected a sha256 oid")
    blob = draft.hub.bytes_of(draft.repo, sha256)
    if blob is None:
        raise bad_request(
            "Your push was rejected because an LFS pointer pointed to a file that does not exist. "
            f"Offending file: - {path}"
        )
    if size is not None and size != blob.size:
        raise bad_request(f"`{path}`: LFS object `{sha256}` has {blob.size} bytes, expected {size}")
    draft.put_lfs(path, sha256, blob.size)


def _deleted_file(draft: Draft, path: str, value: dict[str, Any]) -> None:
    if draft.entry(path) is None:
        raise entry_not_found(f"A file with this name doesn't exist: {path}")
    draft.changes[path] = None


def _deleted_folder(draft: Draft, path: str, value: dict[str, Any]) -> None:
    prefix = path.rstrip("/") + "/"
    inside = {name for name in draft.base.under(prefix[:-1]) if draft.entry(name) is not None}
    inside |= {name for name, entry in draft.changes.items() if entry and name.startswith(prefix)}
    if not inside:
        raise entry_not_found(f"A folder with this name doesn't exist: {path}")
    draft.changes.update(dict.fromkeys(inside))


def conflict() -> Refusal:
    """The branch moved: the parent that was named is not its head."""
    return Refusal(412, "A commit has happened since. Please refresh and try again.")


def effective(draft: Draft) -> dict[str, Entry | None]:
    """The draft's changes without those that change nothing."""
    kept: dict[str, Entry | None] = {}
    for path, entry in draft.changes.items():
        before = draft.base.files.get(path)
        same = (before is None) == (entry is None) and (
            before is None or entry is None or (before.oid, before.lfs) == (entry.oid, entry.lfs)
        )
        if not same:
            kept[path] = entry
    return kept


def record(draft: Draft, ref: str, parent: Commit, *, title: str, message: str, author: str) -> Commit:
    """Write the commit and move `ref`, unless it has moved since `parent` was read."""
    hub, repo = draft.hub, draft.repo
    with hub.db.write():
        head = hub.history.ref(repo, ref)
        if head is None or head.id != parent.id:
            raise conflict()
        commit = hub.history.add(
            repo, effective(draft), parent=parent, title=title, message=message, author=author
        )
        hub.history.point(repo, ref, commit)
    return commit
