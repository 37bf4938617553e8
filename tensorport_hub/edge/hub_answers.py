"""What the Hub answers, taken at its word only where it makes sense."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.filenames import is_inside

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RepoState:
    """A repository at a commit, as the Hub's API describes it."""

    repo_id: str
    commit: str
    private: bool
    gated: bool
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class LfsUpload:
    """How an LFS server wants one object: a single PUT, or parts of `part_size` bytes."""

    href: str
    headers: dict[str, str]
    part_size: int | None
    part_urls: tuple[str, ...]
    verify: str | None


def may_create(said: dict[str, Any], namespace: str) -> bool:
    """Whether the account that `whoami` told of may make a repository in a namespace; True where that is not
    certain, as of a token whose rights are listed one by one.
    """
    role = ((said.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        return False
    if said.get("type") != "user" or role == "fineGrained" or not isinstance(said.get("orgs"), list):
        return True
    roles = {str(org["name"]).lower(): org.get("roleInOrg") for org in said["orgs"]}
    if namespace.lower() in roles:
        return bool(roles[namespace.lower()] != "read")
    return bool(str(said["name"]).lower() == namespace.lower())


def upload_of(actions: dict[str, Any]) -> LfsUpload | None:
    """What a batch answer asks for; None where it asks for nothing: the object is there."""
    if "upload" not in actions:
        return None
    upload, verify = actions["upload"], actions.get("verify")
    headers = {str(k): str(v) for k, v in (upload.get("header") or {}).items()}
    part_size = headers.pop("chunk_size", None)
    urls = [headers.pop(key) for key in sorted((k for k in headers if k.isdigit()), key=int)]
    return LfsUpload(
        str(upload["href"]),
        headers,
        int(part_size) if part_size else None,
        tuple(urls),
        str(verify["href"]) if verify else None,
    )


def state_of(repo_id: str, answer: bytes) -> RepoState:
    """A repository, as the Hub describes it with all its files (`GET /api/models/ID?blobs=true`).

    For many files that is many megabytes, and several times as much as objects of Python: so each file
    is made of its entry as soon as that is parsed.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, RecursionError: it makes no sense.
    """
    told = json.loads(answer, object_hook=_made)
    files = told.get("siblings") or []
    for file in files:
        if isinstance(file, ValueError):
            raise file
        if not isinstance(file, SourceFile):
            raise ValueError(f"file {file!r}")
    commit = told["sha"]
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise ValueError(f"commit {commit!r}")
    files = tuple(sorted(files, key=attrgetter("path")))
    return RepoState(repo_id, commit, bool(told.get("private")), bool(told.get("gated")), files)


def _made(entry: dict[str, Any]) -> Any:
    """A file, or why it is none, of an entry with a file's name; any other entry as it is."""
    if "rfilename" not in entry:
        return entry
    try:
        return _listed(entry)
    except ValueError as error:
        return error


def _listed(sibling: dict[str, Any]) -> SourceFile:
    """A file of a listing.

    Raises:
        ValueError: what it says is no path, size or digest.
    """
    path, size, lfs = sibling["rfilename"], sibling.get("size"), sibling.get("lfs")
    size = 0 if size is None else size
    if lfs and not (isinstance(lfs, dict) and "sha256" in lfs):
        raise ValueError(f"LFS pointer {lfs!r} of {path!r}")
    sha256 = lfs["sha256"] if lfs else None
    oid = None if lfs else sibling.get("blobId")
    if not isinstance(path, str) or not is_inside(path):
        raise ValueError(f"file name {path!r}")
    if type(size) is not int or size < 0:
        raise ValueError(f"size {size!r} of {path!r}")
    for digest, pattern in ((sha256, _SHA256), (oid, COMMIT)):
        if digest is not None and not (isinstance(digest, str) and pattern.fullmatch(digest)):
            raise ValueError(f"digest {digest!r} of {path!r}")
    return SourceFile(path, size, sha256, oid)
