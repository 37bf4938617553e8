"""What SRC and DST mean: `org/model`, `org/model@revision`, `hf://org/model@rev/subfolder`, or a folder.

SRC may be the address of a model's page on the Hub, too (`https://huggingface.co/org/model/tree/rev`), and
DST a git remote: `git+https://host/repo.git`, `git+ssh://git@host/repo.git`, `git@host:repo.git`,
`git+file:///path/repo.git`.

A folder is anything that starts with `/`, `.`, `~` or a drive letter; for SRC also the name of a folder that
exists, as everywhere in the Hub's libraries. Everything else must read as a repository id. A git URL with a
secret in it is refused, unquoted: it would be seen in process lists and logs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from tensorport_hub.errors import UseError

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_FOLDER = re.compile(r"([/.~\\]|[A-Za-z]:[\\/])")
_SPECIAL_REVISION = re.compile(r"(refs/(pr|convert)/[^/]+)(?:/|$)")
_HOST = r"(?:[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.]+\])"
_HUBS = ("https://huggingface.co", "https://hf.co")
_ANY_HOST = re.compile(r"https?://[^/?#]+/")
_PAGE = re.compile(
    r"(?!(?:datasets|spaces)/)(?P<id>[^/?#]+(?:/[^/?#]+)?)"
    r"(?:/(?:tree|commit)/(?P<revision>[^/?#]+)(?:/(?P<subfolder>[^?#]*[^/?#]))?)?/?(?:[?#].*)?"
)
_HOST_PATH = re.compile(r"[A-Za-z0-9][\w-]*(\.[\w-]+)+(:\d+)?/[^\s/]+/\S+", re.ASCII)
_GIT_SHORT = re.compile(rf"git@{_HOST}:[^-:\s][^\s\x00-\x1f]*", re.ASCII)
_GIT_URL = re.compile(
    rf"git\+(?:(?P<scheme>https?|ssh)://(?:(?P<user>[^/@\s-][^/@\s]*)@)?{_HOST}(?::\d+)?|file://)"
    r"/+[^/?#\s\x00-\x1f][^?#\s\x00-\x1f]*",
    re.ASCII,
)
_GIT_FORMS = (
    "expected `git+https://host/repo.git`, `git@host:repo.git`, `git+ssh://git@host/repo.git` or"
    " `git+file:///path/repo.git`"
)
_DESTINATIONS = (
    "expected `org/name` on the Hub, a folder such as `./out`, or a git remote such as"
    " `git+https://host/repo.git`"
)
_FORMS = "expected `org/model`, `org/model@revision`, `hf://org/model@revision/subfolder` or a folder"


@dataclass(frozen=True)
class HubLocation:
    """A model repository on the Hub, perhaps at a revision, perhaps below a folder."""

    repo_id: str
    revision: str | None = None
    subfolder: str | None = None


@dataclass(frozen=True)
class FolderLocation:
    """A folder of this machine, as the user wrote it."""

    path: str

    def __post_init__(self) -> None:
        if "\0" in self.path:
            raise UseError(f"`{self.path}` is the name of no folder: it holds a NUL")


@dataclass(frozen=True)
class GitLocation:
    """A git remote, by the URL that git knows it by."""

    url: str


Location = HubLocation | FolderLocation
"""What is read: a source."""


def parse_source(text: str, *, is_folder: bool, endpoint: str | None = None) -> Location:
    """What SRC names.

    Args:
        is_folder: whether a folder of that very name exists.
        endpoint: the Hub in use, whose pages name models as those of huggingface.co do; None: it is not
            known which one that is, every host's are taken for them.

    Raises:
        UseError: it reads as nothing that can be a source.
    """
    if not text.strip():
        raise UseError(f"the source is empty: {_FORMS}")
    if not text.startswith("hf://") and (is_folder or _FOLDER.match(text)):
        return FolderLocation(text)
    if page := _page(text, endpoint):
        return page
    return _hub(text[:-1] if re.fullmatch(r"[^/@:]+/[^/@]+/", text) else text)


def parse_destination(text: str) -> Location | GitLocation:
    """What DST names: `org/name` on the Hub, a folder, or a git remote.

    Raises:
        UseError: it reads as nothing that can be a destination.
    """
    if not text.strip():
        raise UseError(f"the destination is empty: {_DESTINATIONS}")
    if text.startswith(("git+", "git@")):
        return _git(text)
    if _FOLDER.match(text):
        return FolderLocation(text)
    try:
        location = _hub(text)
    except UseError:
        shown = _without_secrets(text)
        raise UseError(f"`{shown}` is no destination: {_DESTINATIONS}", hint=_meant(shown)) from None
    if location.revision or location.subfolder:
        raise UseError(f"destination `{text}` must be a whole repository: expected `org/name`")
    if "/" not in location.repo_id:
        raise UseError(
            f"destination `{text}` has no owner: expected `org/name`", hint=f"a local folder is `./{text}`"
        )
    return location


def parse_mirror(text: str, *, is_folder: bool) -> Location | GitLocation:
    """What is only read where DST would be written: a folder that exists goes first, as for SRC.

    Raises:
        UseError: it reads as nothing that can be a destination.
    """
    if is_folder and text.strip() and not text.startswith(("hf://", "git+")):
        return FolderLocation(text)
    return parse_destination(text)


def _page(text: str, endpoint: str | None) -> HubLocation | None:
    """The model whose page this address is; None where it is none."""
    host = _ANY_HOST.match(text) if endpoint is None else None
    hubs = [host.group()] if host else [f"{hub.rstrip('/')}/" for hub in (endpoint, *_HUBS) if hub]
    hub = next((hub for hub in hubs if text.startswith(hub)), None)
    match = _PAGE.fullmatch(text.removeprefix(hub)) if hub is not None else None
    if match is None:
        return None
    _check_id(match["id"], text)
    revision, subfolder = match["revision"], match["subfolder"]
    return HubLocation(
        match["id"], unquote(revision) if revision else None, unquote(subfolder) if subfolder else None
    )


def _meant(text: str) -> str:
    """What somebody may have meant by a destination that is none; "" where nothing suggests itself."""
    if re.match(r"(https?|ssh|file)://", text):
        return f"a git remote is `git+{text}`; a repository on the Hub is named `org/name`, without its host"
    if _HOST_PATH.fullmatch(text):
        return f"a git remote is `git+https://{text}`"
    if is_repo_id(text.rstrip("/")):
        return f"on the Hub it is `{text.rstrip('/')}`, a local folder is `./{text}`"
    return ""


def _git(text: str) -> GitLocation:
    """A git remote: by the short form of ssh, or by a URL."""
    if _GIT_SHORT.fullmatch(text):
        return GitLocation(text)
    match = _GIT_URL.fullmatch(text)
    if match is None:
        raise UseError(f"`{_without_secrets(text)}` is no git remote: {_GIT_FORMS}")
    user = match["user"] or ""
    if ":" in user or (user and match["scheme"] != "ssh"):
        raise UseError(
            f"`{_without_secrets(text)}` was given with a user or a password, which others could see",
            hint="leave it out: git's credential helper, an ssh agent or `TENSORPORT_GIT_HEADER` tells who"
            " you are",
        )
    return GitLocation(text.removeprefix("git+"))


def _without_secrets(text: str) -> str:
    """A URL that was written wrongly, for people: nothing of what comes before the last `@`."""
    scheme, between, rest = text.partition("://")
    return f"{scheme}{between}{rest.rpartition('@')[2]}"


def _hub(text: str) -> HubLocation:
    if text.startswith("hf://"):
        return _hub_url(text)
    repo_id, at, revision = text.partition("@")
    _check_id(repo_id, text)
    if at and not revision:
        raise UseError(f"`{text}` names no revision after `@`: {_FORMS}")
    return HubLocation(repo_id, revision or None)


def _hub_url(text: str) -> HubLocation:
    path = text.removeprefix("hf://").removeprefix("models/")
    match = re.fullmatch(r"([^/@]+/[^/@]+)(?:@(.+))?(?:/(.*))?", path) if "@" in path else None
    if match is None:
        owner, _, rest = path.partition("/")
        name, _, subfolder = rest.partition("/")
        repo_id, revision = f"{owner}/{name}", None
    else:
        repo_id, _, tail = path.partition("@")
        special = _SPECIAL_REVISION.match(tail)
        revision = special.group(1) if special else tail.partition("/")[0]
        subfolder = tail[len(revision) :].lstrip("/")
    _check_id(repo_id, text)
    return HubLocation(repo_id, unquote(revision) if revision else None, subfolder.strip("/") or None)


def is_repo_id(text: str) -> bool:
    """Whether a text is a repository's id, `org/model` or `model`, as the Hub allows them."""
    return (
        _ID.fullmatch(text) is not None
        and not any(pair in text for pair in ("--", ".."))
        and not text.endswith((".git", ".", "-"))
    )


def _check_id(repo_id: str, text: str) -> None:
    if not is_repo_id(repo_id):
        raise UseError(f"`{text}` is no repository and no folder: {_FORMS}")
