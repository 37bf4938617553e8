"""git, driven in a bare repository of its own: the one door to GitPython, and to the programs behind it.

Each call is a process with a session of its own, an end that it must come to, and nobody to ask for a
password; what it started dies with it when it is interrupted. A repository lies in a temporary folder, which
a run that was killed leaves behind: the next run on this machine removes it.

Who the user is git knows itself, by a credential helper or an ssh agent, or it is told a header by
`TENSORPORT_GIT_HEADER`: that goes to the remote's own host alone, through the environment. The Hub's token is
taken out of it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tensorport_hub.edge.exchange import locked
from tensorport_hub.errors import DestinationError

HEADER = "TENSORPORT_GIT_HEADER"
NOBODY = "tensorport-hub <tensorport-hub@localhost>"
_PREFIX = "tensorport-git-"
_GIT, _GIT_LFS = (2, 31), (3, 0)
"""`GIT_CONFIG_COUNT` came with git 2.31."""
_SECONDS = 600.0
_SETTLED = 10.0
"""Seconds after which a folder that nobody locks is nobody's."""
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", HEADER)
_WORDS = 600
"""Characters of what a program said that an error quotes."""

_PASSING = re.compile(
    r"could not resolve host|connection (refused|reset|timed out)|operation timed out|timed? ?out|early eof"
    r"|unexpected disconnect|hung up|rpc failed|i/o timeout|broken pipe|\beof\b|no route to host"
    r"|tls handshake|returned error: (5\d\d|429|408)|server error|fatal error: |too many requests|rate limit"
    r"|panic: |unable to access .*(empty reply|recv failure|transfer closed)",
    re.IGNORECASE,
)
_LASTING = re.compile(
    r"insufficient (server )?storage|quota|returned error: 50[157]|does not support", re.IGNORECASE
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_HINTS = (
    (
        r"authenti|authoriz|permission|denied|could not read (username|password)|terminal prompts"
        r"|returned error: 40[13]|host key|publickey|forbidden|proper access",
        f"git's credential helper, an ssh agent, or a header in `{HEADER}` says who you are",
    ),
    (
        r"not found|does not appear to be a git repo|no such file|returned error: 404",
        "make the repository first, or see that you may read it",
    ),
    (
        r"storage|quota|too large|size|larger|limit|\b413\b|\b507\b",
        "the host's limits on files and storage: lower `--shard-size`, or raise them there",
    ),
)


@dataclass(frozen=True)
class Ended:
    """A process that came to its end."""

    code: int
    out: bytes
    said: str


class Git:
    """git in a new bare repository whose remote `origin` is `url`.

    Attributes:
        folder: everything of it; `repository` and what else is staged.
        closed: set it, and nothing is waited for any more.

    Raises:
        DestinationError: git or git-lfs is missing or too old.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._live: set[int] = set()
        self._lock = threading.Lock()
        self.closed = threading.Event()
        self._held: IO[bytes] | None = None
        library = require_git()
        _sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            self._held = locked(self.folder / "lock")
            self.repository = self.folder / "repository"
            self.repository.mkdir()
            self._git = library.Git(str(self.repository))
            self._git.update_environment(**_environment(url, self.repository))
            self.ask("init", "--quiet", "--bare", "--template=", doing="making a repository")
            for key, value in _settings(url).items():
                self.ask("config", key, value, doing="setting up a repository")
        except BaseException:
            self.close()
            raise

    def run(
        self, *words: str, given: bytes | None = None, seconds: float = _SECONDS, answers: bool = True
    ) -> Ended:
        """Run `git WORDS` to its end, with `given` on its standard input; what it `answers` may not matter.

        Raises:
            DestinationError: it did not end within `seconds`, or everything was closed.
        """
        with self._lock:
            if self.closed.is_set():
                raise DestinationError("the run has ended")
            running = self._git.execute(  # held: when it is collected, the process is ended
                ["git", *words],
                as_process=True,
                istream=subprocess.PIPE if given is not None else None,
                with_stdout=answers,
                shell=False,
                start_new_session=True,
            )
            process = running.proc
            self._live.add(process.pid)
        try:
            out, said = process.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise DestinationError(
                f"`git {words[0]}` did not end within {seconds:.0f} s", transient=True
            ) from None
        finally:
            with self._lock:
                self._live.discard(process.pid)
            if process.returncode is None:
                _kill(process.pid)
                process.wait()
        return Ended(process.returncode, out or b"", self._redacted(said.decode("utf-8", "replace")))

    def ask(self, *words: str, doing: str, given: bytes | None = None, seconds: float = _SECONDS) -> bytes:
        """What `git WORDS` answers.

        Raises:
            DestinationError: it failed; `transient` where that may pass.
        """
        ended = self.run(*words, given=given, seconds=seconds)
        if ended.code:
            raise failure(doing, ended.said)
        return ended.out

    def author(self) -> str:
        """Who commits here, as the user's git is configured; else nobody in particular."""
        name = os.environ.get("GIT_AUTHOR_NAME") or self._configured("user.name")
        mail = os.environ.get("GIT_AUTHOR_EMAIL") or self._configured("user.email")
        found = re.sub(r"[<>\x00-\x1f]", "", name), re.sub(r"[<>\x00-\x20]", "", mail)
        return f"{found[0]} <{found[1]}>" if all(found) else NOBODY

    def _configured(self, key: str) -> str:
        return self.run("config", key).out.decode("utf-8", "replace").strip()

    def _redacted(self, said: str) -> str:
        """What a program said, without what could be a secret."""
        header = os.environ.get(HEADER, "").partition(":")[2].strip()
        said = _IN_URL.sub("", said)
        for secret in (header, *header.split()):
            if len(secret) > 6:
                said = said.replace(secret, "***")
        return said

    def close(self) -> None:
        """End what runs, and leave nothing behind."""
        with self._lock:
            self.closed.set()
            for pid in self._live:
                _kill(pid)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._held is not None:
            self._held.close()


def failure(doing: str, said: str) -> DestinationError:
    """A program's failure, in its own last words."""
    lines = [line.strip() for line in said.splitlines()]
    told = [
        line for line in lines if line and not line.startswith(("hint:", "Uploading LFS", "Errors logged"))
    ]
    words = "; ".join(told)[-_WORDS:] or "git gave no reason"
    passing = bool(_PASSING.search(said)) and not _LASTING.search(said)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said, re.IGNORECASE)), "")
    return DestinationError(f"{doing} failed: {words}", hint="" if passing else hint, transient=passing)


def require_git() -> Any:
    """GitPython, where the programs that it needs are here.

    Raises:
        DestinationError: git or git-lfs is missing or too old.
    """
    try:
        import git
    except ImportError:  # so it says that there is no git
        raise _missing("git", _GIT) from None
    for name, words, needed in (("git", ["version"], _GIT), ("git-lfs", ["lfs", "version"], _GIT_LFS)):
        try:
            said = git.Git().execute(["git", *words], kill_after_timeout=60)
        except git.CommandError:
            raise _missing(name, needed) from None
        found = re.search(r"(\d+)\.(\d+)", str(said))
        if found is None or (int(found[1]), int(found[2])) < needed:
            raise DestinationError(
                f"`{name}` is too old: expected {needed[0]}.{needed[1]} or newer, got"
                f" {found[0] if found else said}",
                hint=f"install a newer {name}",
            )
    return git


def _missing(name: str, needed: tuple[int, int]) -> DestinationError:
    return DestinationError(
        f"`{name}` is missing: a git remote needs {needed[0]}.{needed[1]} or newer", hint=f"install {name}"
    )


def _environment(url: str, repository: Path) -> Mapping[str, str]:
    """What a process is told, besides what this one was told."""
    told = {
        "GIT_DIR": str(repository),
        "GIT_TERMINAL_PROMPT": "0",
        "GCM_INTERACTIVE": "never",
        "GIT_LFS_SKIP_SMUDGE": "0",
    }
    told |= {name: "" for name in _SECRETS if name in os.environ}
    told |= {name: "0" for name in os.environ if name.startswith("GIT_TRACE") or name == "GIT_CURL_VERBOSE"}
    header = os.environ.get(HEADER, "")
    if header and url.startswith(("http://", "https://")):
        count = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
        told |= {
            "GIT_CONFIG_COUNT": str(count + 1),
            f"GIT_CONFIG_KEY_{count}": f"http.{'/'.join(url.split('/')[:3])}/.extraHeader",
            f"GIT_CONFIG_VALUE_{count}": header,
        }
    return told


def _settings(url: str) -> Mapping[str, str]:
    return {
        "remote.origin.url": url,
        "gc.auto": "0",
        "core.hooksPath": os.devnull,
        "lfs.locksverify": "false",
        "lfs.transfer.maxretries": "3",
        "lfs.allowincompletepush": "true",
    }


def _sweep() -> None:
    """Remove what runs that were killed left on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            begun = (folder / "lock").stat().st_mtime
            lock = locked(folder / "lock") if time.time() - begun > _SETTLED else None
        except OSError:  # another user's, or another run removes it
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def _kill(pid: int) -> None:
    """End a process and what it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
