"""What a git host may say: no, not now, who are you; and what touches the disk meanwhile."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tensorport_hub import mirror, plan, verify
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import DestinationError, TensorportError
from tensorport_hub.ports import Event
from tests.e2e.held import held_on_disk
from tests.e2e.test_interrupts import wait_for
from tests.git.conftest import Host, git
from tests.git.front import Fault, Front
from tests.git.sizes import EVERY, PARTS, SOURCE, few
from tests.git.test_mirror import ReadBack, run

PASSWORD = "me:pa55word-of-mine"
HEADER = f"Authorization: Basic {base64.b64encode(PASSWORD.encode()).decode()}"


@pytest.fixture
def giftless(hub: DevHub, host_of: Callable[[str], Host]) -> Host:
    return host_of("giftless")


@pytest.fixture
def mercurial(hub: DevHub, host_of: Callable[[str], Host]) -> Host:
    return host_of("mercurial")


def front(host: Host) -> Front:
    """The server before it."""
    assert host.front is not None
    return host.front


class TestRefusals:
    """Exit 5, the file by name, the host's words; nothing published, what is there stays."""

    @few(
        "method, status, words, hint",
        [
            ("POST", 413, "too large for us", "--shard-size"),
            ("POST", 403, "you may not", ""),
            ("PUT", 422, "unprocessable", ""),
            ("PUT", 507, "Insufficient storage", "--shard-size"),
        ],
        [
            ("PUT", 413, "too large for us", "--shard-size"),
            ("PUT", 403, "you may not", ""),
            ("POST", 422, "unprocessable", ""),
            ("POST", 507, "Insufficient storage", "--shard-size"),
        ],
    )
    def test_an_object_is_refused(
        self, giftless: Host, method: str, status: int, words: str, hint: str
    ) -> None:
        """By the batch API, or when it is uploaded."""
        path = "*/objects/batch" if method == "POST" else "*"
        fault = Fault(method, path, status, body=f'{{"message": "{words}"}}', after=1, times=None)
        front(giftless).faults.append(fault)
        with pytest.raises(
            DestinationError, match=r"`shard_000/layers\.\d\.w\d\.npy` \(100128 bytes\)"
        ) as caught:
            run(giftless, workers=1)
        assert words in caught.value.message
        assert hint in caught.value.hint
        assert not caught.value.transient
        assert giftless.branches() == {}
        front(giftless).faults.clear()
        front(giftless).seen.clear()
        run(giftless)
        assert len([seen for seen in front(giftless).seen if seen.method == "PUT"]) == PARTS - 1

    def test_wrong_bytes_are_refused_by_a_server_that_looks(
        self, mercurial: Host, read_back: ReadBack
    ) -> None:
        """One bit flips on the way: the server answers 422, and the run ends."""
        front(mercurial).faults.append(Fault("PUT", "*", damage=True, after=1, times=None))
        with pytest.raises(DestinationError, match=r"layers\.\d\.w\d\.npy"):
            run(mercurial, workers=1)
        assert mercurial.branches() == {}

    def test_an_object_that_is_not_kept(self, giftless: Host) -> None:
        """The server says that it took a file, and has not: nothing is published, the file is named."""
        front(giftless).faults.append(Fault("PUT", "*", 200, after=1))
        front(giftless).faults.append(Fault("POST", "*/verify", 200, body="{}", times=None))
        with pytest.raises(DestinationError, match=r"has not kept `shard_000/layers\.\d\.w\d\.npy`"):
            run(giftless, workers=1)
        assert giftless.branches() == {}

    @few(
        "status, path",
        [
            (500, "*/git-receive-pack"),
            (502, "*/info/refs"),
            (503, "*/objects/batch"),
            (500, "*/storage/*"),
        ],
        [
            *[(status, "*/info/refs") for status in (500, 503)],
            *[(status, "*/git-receive-pack") for status in (502, 503)],
            *[(status, "*/objects/batch") for status in (500, 502)],
            *[(status, "*/storage/*") for status in (502, 503)],
        ],
    )
    def test_passing_faults_pass(self, giftless: Host, read_back: ReadBack, path: str, status: int) -> None:
        """A busy server is asked again."""
        front(giftless).faults.append(Fault("*", path, status, body="{}", times=3))
        run(giftless, workers=1)
        assert "manifest.json" in read_back(giftless)

    def test_too_many_requests(self, giftless: Host, read_back: ReadBack) -> None:
        """429 while objects are uploaded: git-lfs, or we, come back."""
        front(giftless).faults.append(Fault("PUT", "*", 429, body="{}", times=2))
        run(giftless, workers=1)
        assert "manifest.json" in read_back(giftless)

    def test_a_host_that_is_not_there(self, hub: DevHub) -> None:
        """Nobody answers: exit 5, after some tries."""
        with pytest.raises(
            DestinationError, match=r"asking `http://127\.0\.0\.1:9/x\.git` for its branches failed"
        ):
            plan(SOURCE, "git+http://127.0.0.1:9/x.git")

    def test_a_full_quota_of_the_repository(self, giftless: Host) -> None:
        """A hook declines everything: its words are said, and which branch it was."""
        hook = giftless.path / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\necho 'this repository is over its quota' >&2\nexit 1\n")
        hook.chmod(0o755)
        with pytest.raises(DestinationError, match=r"pushing `main` .*over its quota.*hook declined"):
            run(giftless)


class TestWho:
    """Credentials: by git's own means or by a header, and never anywhere else."""

    @pytest.fixture
    def closed(self, giftless: Host) -> Host:
        """A host that asks everybody for a password, for git and for LFS."""
        front(giftless).password = PASSWORD
        return giftless

    def test_nobody(self, closed: Host) -> None:
        """Without credentials: exit 5 at plan time, at once, with what to do."""
        with pytest.raises(DestinationError) as caught:
            plan(SOURCE, closed.url)
        assert "TENSORPORT_GIT_HEADER" in caught.value.hint

    def test_reading_is_not_writing(self, giftless: Host) -> None:
        """A host that asks only who pushes: exit 5 at plan time."""
        front(giftless).faults.append(Fault("GET", "*/git-receive-pack", 403, times=None))
        giftless.git("config", "http.receivepack", "false")
        with pytest.raises(DestinationError, match="leave to push"):
            plan(SOURCE, giftless.url)

    def test_a_wrong_password(self, closed: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """Exit 5; what was given is not in the error."""
        monkeypatch.setenv("TENSORPORT_GIT_HEADER", "Authorization: Basic d3Jvbmc6dGhpbmc=")
        with pytest.raises(DestinationError) as caught:
            plan(SOURCE, closed.url)
        assert "d3Jvbmc6dGhpbmc=" not in caught.value.message + caught.value.hint

    def test_a_header(self, closed: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """`TENSORPORT_GIT_HEADER` opens git and LFS, for a mirror with checkpoints and its proof."""
        monkeypatch.setenv("TENSORPORT_GIT_HEADER", HEADER)
        run(closed, checkpoint_every=EVERY)
        assert verify(closed.url, deep=True).ok
        asked = [seen for seen in front(closed).seen if "/objects/storage/" not in seen.path]
        assert {seen.status for seen in asked} == {200}

    def test_a_credential_helper(self, closed: Host, tmp_path: Path) -> None:
        """git's own: here the one that keeps passwords in a file."""
        git(tmp_path, "config", "--global", "credential.helper", "store")
        url = closed.url.removeprefix("git+").split("/st/")[0].replace("://", f"://{PASSWORD}@")
        (tmp_path / ".git-credentials").write_text(f"{url}\n")
        run(closed, checkpoint_every=EVERY)
        assert verify(closed.url, deep=True).ok

    def test_a_header_of_gits_configuration(self, closed: Host, tmp_path: Path) -> None:
        """`http.extraHeader`, as continuous integration sets it."""
        host = closed.url.removeprefix("git+").split("/st/")[0]
        git(tmp_path, "config", "--global", f"http.{host}/.extraHeader", HEADER)
        run(closed)

    def test_secrets_leave_no_trace(
        self,
        closed: Host,
        tmp_path: Path,
        hub: DevHub,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        read_back: ReadBack,
    ) -> None:
        """Neither the header nor the Hub's token: in no log, event, error, result, file or commit; the token
        in no request to the git host; though git traces, and the host's errors echo what they got."""
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("TENSORPORT_GIT_HEADER", HEADER)
        monkeypatch.setenv("GIT_TRACE_CURL", "1")
        monkeypatch.setenv("GIT_TRACE_REDACT", "0")
        monkeypatch.setenv("GIT_CURL_VERBOSE", "1")
        monkeypatch.setenv("GIT_TRACE", "1")
        said: list[str] = []

        def hear(event: Event) -> None:
            said.append(repr(event))

        secret = HEADER.split()[-1]
        echo = f'{{"message": "you said {HEADER}"}}'
        front(closed).faults.append(Fault("PUT", "*", 403, body=echo, after=5, times=None))
        with pytest.raises(TensorportError) as caught:
            run(closed, checkpoint_every=EVERY, on_event=hear)
        front(closed).faults.clear()
        result = run(closed, checkpoint_every=EVERY, on_event=hear)
        said += [
            repr(caught.value),
            caught.value.message,
            caught.value.hint,
            repr(result),
            repr(result.manifest),
        ]
        said += [repr(verify(closed.url, deep=True, on_event=hear)), caplog.text]
        for word in (secret, PASSWORD, hub.token):
            assert word not in "".join(said)
        assert all(hub.token not in repr(seen) for seen in front(closed).seen)
        for path in [*closed.path.rglob("*"), *(tmp_path / "scratch").rglob("*")]:
            if path.is_file():
                data = path.read_bytes()
                assert secret.encode() not in data
                assert hub.token.encode() not in data

    def test_secrets_are_in_no_process_list(self, closed: Host, hub: DevHub, tmp_path: Path) -> None:
        """While git-lfs waits for a silent server: no command line has the header or the token, and the
        environment of what we start has no token of the Hub."""
        front(closed).faults.append(Fault("PUT", "*", seconds=60, times=None))
        environment = {**os.environ, "TENSORPORT_GIT_HEADER": HEADER}
        words = [sys.executable, "-m", "tensorport_hub", "mirror", SOURCE, closed.url, "-q"]
        process = subprocess.Popen(words, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: bool(front(closed).faults[0].struck), process)
            seen = 0
            for other in Path("/proc").glob("[0-9]*"):
                try:
                    line, told = (other / "cmdline").read_bytes(), (other / "environ").read_bytes()
                except OSError:
                    continue
                assert HEADER.split()[-1].encode() not in line
                assert hub.token.encode() not in line
                if b"git-lfs" in line and b"tensorport-git-" in told:
                    seen += 1
                    assert hub.token.encode() not in told
            assert seen
        finally:
            process.kill()
            process.communicate()


def test_ssh(hub: DevHub, giftless: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both spellings, by the user's own ssh command: here one that runs on this machine what it is told, as
    a host would, and says where the LFS server is."""
    lfs = giftless.url.removeprefix("git+") + "/info/lfs"
    script = tmp_path / "ssh"
    script.write_text(
        "#!/bin/sh\n"
        'for word; do last="$word"; done\n'
        'case "$last" in\n'
        f'git-lfs-authenticate*) echo \'{{"href": "{lfs}", "header": {{}}}}\';;\n'
        "git-lfs-transfer*) exit 127;;\n"
        '*) exec sh -c "$last";;\n'
        "esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(script))
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    for url in (f"git+ssh://git@example.org{giftless.path}", f"git@example.org:{giftless.path}"):
        result = mirror(SOURCE, url, checkpoint_every=EVERY)
        assert verify(url, deep=True).ok
        assert giftless.branches() == {"main": result.commit}
    assert not result.changed


@pytest.mark.parametrize("missing", ["git", "git-lfs", "old git-lfs"])
def test_programs_that_are_missing(
    hub: DevHub, host_of: Callable[[str], Host], tmp_path: Path, missing: str
) -> None:
    """No git, no git-lfs, or one of long ago: exit 5 with what to install, before anything is read."""
    host = host_of("bare path")
    programs = tmp_path / "programs"
    programs.mkdir()
    if missing != "git":
        real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
        old = '[ "$1" = lfs ] && { echo "git-lfs/2.9.1 (GitHub)"; exit 0; }' if "old" in missing else ""
        none = '[ "$1" = lfs ] && { echo "git: lfs is not a git command" >&2; exit 1; }' if not old else ""
        (programs / "git").write_text(f'#!/bin/sh\n{old}{none}\nexec {real} "$@"\n')
        (programs / "git").chmod(0o755)
    hub.forget()
    words = [sys.executable, "-m", "tensorport_hub", "plan", SOURCE, host.url]
    environment = {**os.environ, "PATH": f"{programs}:/bin" if missing != "git" else str(programs)}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert ended.returncode == 5, ended.stderr
    name = missing.split()[-1]
    assert f"`{name}` is {'too old' if 'old' in missing else 'missing'}" in ended.stderr
    assert "hint: install" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not hub.seen


@pytest.mark.parametrize("kind", ["bare path", "giftless"])
def test_staging_is_bounded(
    hub: DevHub, host_of: Callable[[str], Host], tmp_path: Path, read_back: ReadBack, kind: str
) -> None:
    """All files that a run holds at a time, deleted ones included, seen from outside: what `--max-disk` says,
    and git's own small ones; a proof holds one file a worker; then nothing is left."""
    hub.add_repo("st/large", large())
    host = host_of(kind)
    scratch = tmp_path / "scratch"
    for words in (
        ["mirror", "st/large", host.url, "--max-disk", "9MB", "--checkpoint-every", "20MB", "-q"],
        ["verify", host.url, "--deep", "--workers", "2", "-q"],
    ):
        process = subprocess.Popen([sys.executable, "-m", "tensorport_hub", *words], cwd=scratch)
        peak = 0
        while process.poll() is None:
            twice = [held_on_disk(process.pid, scratch) for _ in range(2)]  # files move while one looks
            peak = max(peak, min(twice))
            time.sleep(0.002)
        assert process.returncode == 0
        assert 4_000_000 < peak <= 9_000_000 + 1_000_000
        assert not list(scratch.iterdir())


def large() -> dict[str, bytes]:
    """Sixteen tensors of 4 MB."""
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": rng.standard_normal((1000, 1000), np.float32) for i in range(16)}
    return {"model.safetensors": save(tensors), "config.json": b"{}\n"}
