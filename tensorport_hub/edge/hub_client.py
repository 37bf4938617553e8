"""The Hub's own client, adapted: the only module that knows what is private in huggingface_hub.

It finds endpoint and token as every Hub tool does (but at the time of the call, not of the import), makes
commits from content that is already uploaded, and has errors of ours raised (`hub_errors`). Nothing here
retries by itself (see `retry`), but for the client's own questions how small files are stored.

Facts are those of huggingface_hub 2.x: an LFS entry of a commit is path, sha256 and size, and
`CommitOperationAdd` skips its upload once `_is_uploaded` is set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    try_to_load_from_cache,
)
from huggingface_hub._commit_api import _fetch_upload_modes
from huggingface_hub.errors import HfHubHTTPError, OIDCError
from huggingface_hub.lfs import LFS_HEADERS, UploadInfo
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import fix_hf_endpoint_in_url, get_session, hf_raise_for_status
from huggingface_hub.utils._validators import validate_repo_id

from tensorport_hub import __version__
from tensorport_hub.core.tensor import shorten
from tensorport_hub.edge.http import Refusal
from tensorport_hub.edge.hub_answers import LfsUpload, RepoState, may_create, state_of, upload_of
from tensorport_hub.edge.hub_errors import Absent, translated
from tensorport_hub.edge.pace import pace_of
from tensorport_hub.errors import DestinationError, SourceError, UseError
from tensorport_hub.ports import Receipt

T = TypeVar("T")
_SILENCE = httpx2.Timeout(120.0, connect=30.0)
"""Seconds until a silent Hub is given up: by itself the client waits for an answer without end."""
_TOKEN = re.compile(r"[\x21-\x7e]+")
"""What may stand in a header: libraries print a header that they refuse."""


class HubClient:
    """The Hub's API for one endpoint and one token."""

    def __init__(self, *, endpoint: str | None = None, token: str | None = None) -> None:
        self.endpoint = (
            endpoint
            or os.environ.get("HF_ENDPOINT")
            or constants.ENDPOINT  # the variable at the time of the import, which may be empty, too
            or constants._HF_DEFAULT_ENDPOINT
        ).rstrip("/")
        if not self.endpoint.startswith(("http://", "https://")):
            scheme = "http" if re.search(r":\d+$", self.endpoint) else "https"
            raise UseError(
                f"endpoint `{self.endpoint}` is no URL: expected `http://` or `https://` before it",
                hint=f"did you mean `{scheme}://{self.endpoint}`? `HF_ENDPOINT` says it",
            )
        self.token = (token or _found_token() or "").strip() or None
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise UseError("the token is malformed: it holds a space, a line break or a letter beyond ASCII")
        self.pace = pace_of(self.endpoint, self.token)
        self._api = HfApi(
            endpoint=self.endpoint,
            token=self.token or False,
            library_name="tensorport-hub",
            library_version=__version__,
        )

    def headers(self) -> dict[str, str]:
        """User agent and authorization: for requests to the endpoint alone."""
        headers: dict[str, str] = build_hf_headers(
            token=self.token or False, library_name="tensorport-hub", library_version=__version__
        )
        return headers

    def whoami(self) -> str:
        """The account that the token belongs to."""
        self.require_token()
        return self.call(lambda api: str(api.whoami()["name"]), "the account")

    def require_token(self) -> None:
        """Without one nothing can be written."""
        if self.token is None:
            raise DestinationError(
                "writing to the Hub needs a token", hint="log in with `hf auth login`, or set `HF_TOKEN`"
            )

    def may_create(self, repo_id: str) -> bool:
        """Whether the token may make this repository; True where the Hub does not tell for certain."""
        namespace = repo_id.partition("/")[0]
        return self.call(lambda api: may_create(api.whoami(), namespace), "the account")

    def repo_state(self, repo_id: str, revision: str | None, refusal: Refusal) -> RepoState:
        """One request: the commit that `revision` names now, and all files with sizes and digests."""

        def look() -> RepoState:
            validate_repo_id(repo_id)
            at = f"/revision/{quote(revision, safe='')}" if revision else ""
            url = f"{self.endpoint}/api/models/{repo_id}{at}"
            response = get_session().get(url, params={"blobs": True}, headers=self.headers())
            hf_raise_for_status(response)
            return state_of(repo_id, response.content)

        at = f" at `{revision}`" if revision else ""
        return self.call(lambda api: look(), f"repository `{repo_id}`{at}", refusal)

    def find_repo(self, repo_id: str) -> RepoState | None:
        """The repository's state on `main`, or None where there is none that this token may see."""
        try:
            return self.repo_state(repo_id, None, DestinationError)
        except Absent:
            return None

    def read_file(self, repo_id: str, path: str, commit: str) -> bytes:
        """A whole small file, held in memory."""
        url = f"{self.endpoint}/{repo_id}/resolve/{commit}/{quote(path)}"

        def get() -> bytes:
            response = get_session().get(url, headers=self.headers(), follow_redirects=True)
            hf_raise_for_status(response)
            return bytes(response.content)

        return self.call(lambda api: get(), f"`{path}` of `{repo_id}`", window="resolvers")

    @property
    def offline(self) -> bool:
        """Whether the user wants nothing but the cache (`HF_HUB_OFFLINE`)."""
        return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")

    def find_cached(self, repo_id: str, path: str, revision: str) -> Path | None:
        """A file of a snapshot in the Hugging Face cache, where any tool downloaded it; never a request."""
        home = os.environ.get("HF_HOME")
        folder = os.environ.get("HF_HUB_CACHE") or (home and os.path.join(home, "hub"))
        with translated(f"repository `{repo_id}`", SourceError):
            found = try_to_load_from_cache(
                repo_id, path, cache_dir=folder or constants.HF_HUB_CACHE, revision=revision
            )
        return Path(found) if isinstance(found, str) else None

    def create_repo(self, repo_id: str, *, private: bool) -> None:
        what = f"repository `{repo_id}`"
        self.call(lambda api: api.create_repo(repo_id, private=private, exist_ok=True), what)

    def lfs_batch(
        self, repo_id: str, receipts: Sequence[Receipt]
    ) -> list[LfsUpload | DestinationError | None]:
        """How to upload each of these objects; None where the Hub has it already, or why it refuses it."""
        paths = {receipt.sha256: receipt.path for receipt in receipts}
        sizes = {receipt.sha256: receipt.size for receipt in receipts}
        asked = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{"oid": oid, "size": size} for oid, size in sizes.items()],
            "hash_algo": "sha256",
        }

        def ask() -> list[LfsUpload | DestinationError | None]:
            url = f"{self.endpoint}/{repo_id}.git/info/lfs/objects/batch"
            response = get_session().post(url, json=asked, headers=LFS_HEADERS | self.headers())
            hf_raise_for_status(response)
            answers: dict[str, LfsUpload | DestinationError | None] = {}
            for one in response.json()["objects"]:
                if "error" in one:
                    said = shorten(one["error"].get("message"))
                    refused = f"`{paths[one['oid']]}` is refused by the LFS server: {said}"
                    answers[one["oid"]] = DestinationError(refused)
                else:
                    answers[one["oid"]] = upload_of(one.get("actions") or {})
            if answers.keys() != paths.keys():
                raise ValueError("it is not about the objects that were asked for")
            return [answers[receipt.sha256] for receipt in receipts]

        more = f" and {len(receipts) - 1} more" if len(receipts) > 1 else ""
        return self.call(lambda api: ask(), f"upload of `{receipts[0].path}`{more}")

    def lfs_paths(self, repo_id: str, files: Sequence[tuple[str, bytes]]) -> frozenset[str]:
        """Which of these files the Hub stores as LFS: by its attributes, or as large or binary."""
        operations = [CommitOperationAdd(path, content) for path, content in files]
        what = f"the upload to `{repo_id}`"
        self.call(lambda api: self._fetch_modes(repo_id, "main", operations), what)
        return frozenset(op.path_in_repo for op in operations if op._upload_mode == "lfs")

    def commit(
        self,
        repo_id: str,
        revision: str,
        *,
        uploaded: Sequence[Receipt],
        small: Sequence[tuple[str, bytes]],
        deleted: Sequence[str],
        parent: str,
        message: str,
    ) -> str:
        """One commit through the client's own call; its id.

        Args:
            revision: a branch, or the ref of a pull request.
            uploaded: content that the Hub's storage holds already.
            small: files that travel with the commit.
            deleted: paths to remove.
            parent: the commit that the ref must still be at.
        """
        what = f"the commit to `{revision}` of `{repo_id}`"
        _hold(self.pace.commit_seconds(), f"{what} waits: too many within the hour", DestinationError)
        operations: list[Any] = [_uploaded(receipt) for receipt in uploaded]
        operations += self._small(repo_id, revision, small)
        operations += [CommitOperationDelete(path) for path in deleted]
        info = self.call(
            lambda api: api.create_commit(
                repo_id, operations, commit_message=message, parent_commit=parent, revision=revision
            ),
            what,
        )
        self.pace.committed()
        return str(info.oid)

    def _fetch_modes(self, repo_id: str, revision: str, additions: Sequence[CommitOperationAdd]) -> None:
        _fetch_upload_modes(
            additions=additions,
            repo_type="model",
            repo_id=repo_id,
            headers=self.headers(),
            revision=quote(revision, safe=""),
            endpoint=self.endpoint,
            gitignore_content="",
        )

    def _small(
        self, repo_id: str, revision: str, files: Sequence[tuple[str, bytes]]
    ) -> list[CommitOperationAdd]:
        """Entries of small files: the client would silently leave out what a `.gitignore` there names."""
        additions = [CommitOperationAdd(path, content) for path, content in files]
        if additions:
            what = f"the commit to `{revision}` of `{repo_id}`"
            self.call(lambda api: self._fetch_modes(repo_id, revision, additions), what)
        for addition in additions:
            addition._should_ignore = False
        return additions

    def page(self, repo_id: str, commit: str) -> str:
        """The page of a commit."""
        return f"{self.endpoint}/{repo_id}/commit/{commit}"

    def hub_url(self, url: str) -> str:
        """A URL that the Hub gave, on the endpoint that the user named."""
        return str(fix_hf_endpoint_in_url(url, self.endpoint))

    def xet_token_url(self, scope: str, repo_id: str, revision: str) -> str:
        """Where a token for the Xet storage is had, to `read` or `write`."""
        return f"{self.endpoint}/api/models/{repo_id}/xet-{scope}-token/{revision}"

    def call(
        self, call: Callable[[HfApi], T], what: str, refusal: Refusal = DestinationError, window: str = "api"
    ) -> T:
        """A call of the client's public interface; its exceptions become ours."""
        self.admit(window, what, refusal)
        with translated(what, refusal):
            _bound_waits()
            try:
                return call(self._api)
            except HfHubHTTPError as error:
                self.pace.hear(error.response.status_code, error.response.headers)
                raise

    def admit(self, window: str, what: str, refusal: Refusal) -> None:
        """Note a request; raise what it would be answered while a window of this account is closed."""
        _hold(self.pace.closed_seconds(window), f"{what} waits for the rate limit `{window}`", refusal)
        self.pace.asked(window)


def _bound_waits() -> None:
    """Let the client that all calls share wait for so long and no longer, where nobody gave it a limit.

    It is looked at before each call, since huggingface_hub makes a new one after some failures.
    """
    session = get_session()
    if session.timeout == httpx2.Timeout(None):
        session.timeout = _SILENCE


def _found_token() -> str | None:
    """The token that every Hub tool finds; for a trusted publisher (`HF_OIDC_RESOURCE`), one made now.

    Raises:
        DestinationError: the Hub trusts this job for nothing, or there is no job.
    """
    if os.environ.get("HF_OIDC_RESOURCE"):
        _bound_waits()
    try:
        with translated("the token of a trusted publisher", DestinationError):
            return get_token()
    except (OIDCError, DestinationError) as error:
        raise DestinationError(
            f"trusted publishing for `{os.environ.get('HF_OIDC_RESOURCE')}` failed: {error}",
            hint="the job needs `id-token: write`, and its claims must be among the Trusted Publishers",
        ) from None


def _hold(seconds: float, said: str, refusal: Refusal) -> None:
    if seconds:
        raise refusal(said, transient=True, retry_after=seconds)


def _upload_info(receipt: Receipt) -> UploadInfo:
    return UploadInfo(size=receipt.size, sample=b"", sha256=bytes.fromhex(receipt.sha256))


def _uploaded(receipt: Receipt) -> CommitOperationAdd:
    """A commit entry for content that is already in the Hub's storage."""
    operation = CommitOperationAdd(receipt.path, b"")
    operation.upload_info = _upload_info(receipt)
    operation._upload_mode = "lfs"
    operation._should_ignore = False
    operation._is_uploaded = True
    return operation
