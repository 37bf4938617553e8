"""Seeds: repositories made and read from Python, past the HTTP API.

`add_repo` makes a repository (and its organization) where there is none and commits a folder or a
mapping of bytes to it; which files become LFS is decided as on the Hub. It works on the stores of a
running devhub and, through `add`, on a root that another process serves or nobody does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tensorport_hub.devhub import gitattributes
from tensorport_hub.devhub.accounts import new_token
from tensorport_hub.devhub.blobs import BLOCK, Blob, ObjectStore
from tensorport_hub.devhub.commits import ATTRIBUTES, Draft, check_path, record
from tensorport_hub.devhub.history import Commit
from tensorport_hub.devhub.hub import Hub, Settings
from tensorport_hub.devhub.refusals import Refusal
from tensorport_hub.devhub.repo_api import found_repo, head_of
from tensorport_hub.devhub.repos import NAME, Repo, check_name
from tensorport_hub.devhub.synthetic import SyntheticFile
from tensorport_hub.devhub.trees import Entry, git_blob_oid, lfs_entry

ME = "me"
SKIPPED = (".git", ".cache")
Content = Path | str | Mapping[str, bytes] | Mapping[str, bytes | SyntheticFile]


def default_token(hub: Hub) -> str:
    """The write token of the default user, made at the first start."""
    hub.accounts.add_user(ME)
    token = hub.db.remembered("default token", new_token())
    return hub.accounts.add_token(ME, token=token)


def _sources(content: Content) -> Iterator[tuple[str, Path | bytes | SyntheticFile]]:
    """(path in the repository, file or content); `.gitattributes` first, because it rules the others."""
    if isinstance(content, Mapping):
        yield from sorted(content.items(), key=lambda item: (item[0] != ATTRIBUTES, item[0]))
        return
    folder = Path(content)
    if not folder.is_dir():
        raise NotADirectoryError(f"`{folder}` is not a folder")
    if (folder / ATTRIBUTES).is_file():
        yield ATTRIBUTES, folder / ATTRIBUTES
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        for name in sorted(names):
            file = Path(parent) / name
            if file != folder / ATTRIBUTES:
                yield file.relative_to(folder).as_posix(), file


def _raise(error: OSError) -> None:
    """A folder that can't be listed is an error: left out, the repository would lack its files."""
    raise error


def _blocks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _store(objects: ObjectStore, source: Path | bytes) -> Blob:
    return objects.put(_blocks(source))


def _entry(hub: Hub, rules: gitattributes.Rules, path: str, source: Path | bytes | SyntheticFile) -> Entry:
    """Store one file and describe it."""
    if isinstance(source, SyntheticFile):
        hub.synthetic.add(source)
        return lfs_entry(path, source.sha256, source.size)
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    sample = next(_blocks(source), b"")[: gitattributes.SAMPLE_NBYTES]
    blob = _store(hub.blobs.objects, source)
    if rules.mode(path, size, sample) == "lfs":
        return lfs_entry(path, blob.sha256, blob.size)
    data = b"".join(blob.read(0, blob.size))
    return Entry(path, blob.size, git_blob_oid(data), blob.sha256, False, "")


def add_repo(
    hub: Hub,
    repo_id: str,
    content: Content,
    *,
    private: bool = False,
    gated: bool | str = False,
    message: str | None = None,
    kind: str = "model",
) -> str:
    """Commit `content` to the repository, made where there is none; the commit's id."""
    namespace = repo_id.partition("/")[0]
    gate = "auto" if gated is True else gated or None
    with hub.committing:
        repo = hub.repos.find(kind, repo_id)
        if repo is None:
            hub.accounts.add_org(namespace)
            repo = found_repo(hub, kind, repo_id, author=ME, private=private, gated=gate)
        elif private or gate:
            hub.repos.change(repo, private=private or None, gated=gate)
        tip = head_of(hub, repo)
        draft = Draft(hub, repo, hub.history.snapshot(tip))
        rules = draft.rules()
        for path, source in _sources(content):
            check_path(path)
            entry = _entry(hub, rules, path, source)
            draft.changes[path] = entry
            if path == ATTRIBUTES:
                rules = draft.rules()
        draft.cover_lfs_files()
        draft.check_tree()
        title = message or f"Add {len(draft.changes)} files"
        with hub.db.write():
            for added in draft.changes.values():
                if added is not None and added.lfs:
                    hub.repos.own_object(repo.id, added.sha256, added.size)
            return record(draft, "refs/heads/main", tip, title=title, message="", author=ME).oid


def add(
    root: Path | str,
    repo_id: str,
    folder: Path | str,
    private: bool = False,
    gated: bool = False,
    *,
    message: str | None = None,
) -> str:
    """`add_repo` on the root of a devhub that may be running or not; the commit's id.

    Raises:
        ValueError: the name is no repository's, or a path can't stand in one.
        OSError: a file of the folder can't be read, or the root can't be written.
    """
    check_name(repo_id)
    hub = Hub(Path(root), Settings(xet="off"))
    try:
        default_token(hub)
        return add_repo(hub, repo_id, folder, private=private, gated=gated, message=message)
    except Refusal as refusal:
        raise ValueError(refusal.message) from refusal
    finally:
        hub.close()


def let_in(root: Path | str, user: str, orgs: Sequence[str] = (), gated: Sequence[str] = ()) -> str:
    """Make the user a member of `orgs` who may write, and one who may read the models `gated`; a new write
    token of theirs. On the root of a devhub that may be running or not.

    Raises:
        ValueError: a name is none, or `user` is an organization.
    """
    for name in (user, *orgs):
        if not NAME.fullmatch(name):
            raise ValueError(f"`{name}` is no name of a user or an organization")
    for repo in gated:
        check_name(repo)
    hub = Hub(Path(root), Settings(xet="off"))
    try:
        hub.accounts.add_user(user, orgs=dict.fromkeys(orgs, "write"), can_read_gated=gated)
        return hub.accounts.add_token(user)
    finally:
        hub.close()


def add_webhook(hub: Hub, url: str, watched: Sequence[str], secret: str | None, owner: str) -> str:
    """Have `url` told of pushes to `watched`: models (`org/name`) or whole namespaces (`org`); its id."""
    items = [{"type": "model" if "/" in name else "org", "name": name} for name in watched]
    return hub.webhooks.create(owner, url, items, ["repo"], secret).id


def watch(root: Path | str, url: str, watched: Sequence[str], secret: str | None) -> str:
    """`add_webhook` on the root of a devhub that may be running or not; the webhook's id."""
    hub = Hub(Path(root), Settings(xet="off"))
    try:
        return add_webhook(hub, url, watched, secret, ME)
    finally:
        hub.close()


def _at(hub: Hub, repo_id: str, revision: str, kind: str) -> tuple[Repo, Commit]:
    repo = hub.repos.find(kind, repo_id)
    if repo is None:
        raise KeyError(f"no {kind} `{repo_id}`")
    commit = hub.history.resolve(repo, revision)
    if commit is None:
        raise KeyError(f"`{repo_id}` has no revision `{revision}`")
    return repo, commit


def read(hub: Hub, repo_id: str, path: str, revision: str, kind: str) -> bytes:
    """The content of a file; KeyError where there is none."""
    _, commit = _at(hub, repo_id, revision, kind)
    entry = hub.history.snapshot(commit).files.get(path)
    if entry is None:
        raise KeyError(f"`{repo_id}` has no file `{path}` at `{revision}`")
    blob = hub.blobs.find(entry.sha256)
    if blob is None:
        raise OSError(f"the bytes of `{path}` are gone")
    return b"".join(blob.read(0, blob.size))


def files(hub: Hub, repo_id: str, revision: str, kind: str) -> dict[str, tuple[int, str | None, str]]:
    """Path -> (size, sha256 of an LFS file, git blob id), by path."""
    _, commit = _at(hub, repo_id, revision, kind)
    found = hub.history.snapshot(commit).files
    return {path: (e.size, e.sha256 if e.lfs else None, e.oid) for path, e in sorted(found.items())}


def commits(hub: Hub, repo_id: str, revision: str, kind: str) -> list[Commit]:
    """The history of a revision, newest first."""
    _, commit = _at(hub, repo_id, revision, kind)
    return hub.history.log(commit)
