"""Runs to git remotes that are interrupted, continued, raced, or disturbed by others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tensorport_hub import mirror, plan
from tensorport_hub.devhub import DevHub
from tensorport_hub.devhub import Fault as HubFault
from tensorport_hub.errors import DestinationError, SourceError
from tensorport_hub.ports import Event, PartDone, Planned, Resumed, Saved, Warned
from tests.e2e.reading import folder_contents
from tests.e2e.test_interrupts import wait_for
from tests.git.conftest import Host, commit_by_hand
from tests.git.front import Fault
from tests.git.sizes import EVERY, FILES, FULL, PARTS, SOURCE, TENSORS, few
from tests.git.test_mirror import ReadBack, run


@pytest.fixture
def expected(hub: DevHub, tmp_path: Path) -> dict[str, bytes]:
    """The same mirror in a folder."""
    mirror(SOURCE, str(tmp_path / "expected"))
    return folder_contents(tmp_path / "expected")


def work(host: Host) -> str:
    """The work branch's name."""
    key = plan(SOURCE, host.url, checkpoint_every=EVERY).plan.fingerprint
    return f"tensorport/{key}"


def protect(host: Host, words: str = "main is protected") -> Path:
    """The host declines pushes to `main`; the hook that does."""
    hook = host.path / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nif grep -q refs/heads/main; then echo '{words}' >&2; exit 1; fi\n")
    hook.chmod(0o755)
    return hook


def test_a_declined_publication_keeps_everything(
    host: Host, expected: dict[str, bytes], read_back: ReadBack
) -> None:
    """A hook declines the branch: exit 5 with its words; what is made is kept, and the next run only
    publishes."""
    commit_by_hand(host, host.path.parent, {".gitattributes": None})
    hook = protect(host)
    with pytest.raises(DestinationError, match="main is protected") as caught:
        run(host, checkpoint_every=EVERY)
    assert "`main`" in caught.value.message
    assert list(host.branches()) == ["main", work(host)]
    hook.unlink()
    events: list[Event] = []
    result = run(host, checkpoint_every=EVERY, on_event=events.append)
    assert result.stats.parts_resumed == PARTS
    assert [event.parts for event in events if isinstance(event, Resumed)] == [PARTS]
    assert read_back(host) == expected
    assert host.branches() == {"main": result.commit}


@few("kind", ["giftless"], ["mercurial"])
def test_an_interrupted_run_is_continued(
    hub: DevHub, host_of: Callable[[str], Host], expected: dict[str, bytes], read_back: ReadBack, kind: str
) -> None:
    """The LFS server refuses after half of the files: exit 5, and the file is named; what was sent before is
    neither read nor sent again by the next run, which knows nothing but the remote."""
    host = host_of(kind)
    assert host.front is not None
    host.front.faults.append(
        Fault("PUT", "*", 413, body='{"message": "quota exceeded"}', after=PARTS // 2, times=None)
    )
    with pytest.raises(
        DestinationError, match=r"`shard_000/layers\.\d\.w\d\.npy` \(100128 bytes\)"
    ) as caught:
        run(host, checkpoint_every=EVERY)
    assert "quota exceeded" in caught.value.message
    assert "--shard-size" in caught.value.hint
    assert list(host.branches()) == ["main", work(host)]
    assert read_back(host) == {}
    host.front.faults.clear()
    host.front.seen.clear()
    result = run(host, checkpoint_every=EVERY)
    assert result.stats.parts_resumed >= PARTS // 2 - 2
    assert len([s for s in host.front.seen if s.method == "PUT"]) <= PARTS - result.stats.parts_resumed
    assert read_back(host) == expected
    assert host.branches() == {"main": result.commit}


class TestBelief:
    """What a work branch says is held against the server."""

    @pytest.fixture
    def left(self, hub: DevHub, host: Host) -> Host:
        """A remote where an interrupted run left all parts."""
        commit_by_hand(host, host.path.parent, {".gitattributes": None})
        hook = protect(host)
        with pytest.raises(DestinationError):
            run(host, checkpoint_every=EVERY)
        hook.unlink()
        return host

    def oid(self, host: Host, path: str) -> str:
        return host.git("show", f"{work(host)}:{path}").split("sha256:")[1].split()[0]

    def test_lost_objects_are_made_again(
        self, left: Host, expected: dict[str, bytes], read_back: ReadBack
    ) -> None:
        """The branch and its journal name objects that the server has not: they don't count."""
        for path in ("shard_000/layers.0.w1.npy", "shard_000/layers.2.w1.npy"):
            left.lose(self.oid(left, path))
        result = run(left, checkpoint_every=EVERY)
        assert result.stats.parts_resumed == PARTS - 2
        assert read_back(left) == expected

    @pytest.mark.parametrize("host", ["giftless"], indirect=True)
    def test_pointers_decide(self, left: Host, expected: dict[str, bytes], read_back: ReadBack) -> None:
        """The branch names another object than its journal: the part does not count."""
        branch = work(left)
        blob = left.git("rev-parse", f"{branch}:shard_000/layers.0.w1.npy")
        commit_by_hand(left, left.path.parent, {"shard_000/layers.0.w0.npy": blob}, branch)
        result = run(left, checkpoint_every=EVERY)
        assert result.stats.parts_resumed == PARTS - 1
        assert read_back(left) == expected

    @pytest.mark.parametrize("host", ["giftless"], indirect=True)
    def test_a_branch_of_somebody_else(
        self, left: Host, expected: dict[str, bytes], read_back: ReadBack
    ) -> None:
        """One that does not say that it is this plan's is made anew, and it is said."""
        commit_by_hand(left, left.path.parent, {".tensorport/run.json": None}, work(left))
        events: list[Event] = []
        result = run(left, checkpoint_every=EVERY, on_event=events.append)
        assert any("not this plan's" in event.message for event in events if isinstance(event, Warned))
        assert result.stats.parts_resumed == 0
        assert read_back(left) == expected
        assert list(left.branches()) == ["main"]

    @pytest.mark.parametrize("host", ["giftless"], indirect=True)
    def test_a_damaged_journal(self, left: Host, expected: dict[str, bytes], read_back: ReadBack) -> None:
        """An error that says so; `restart` gives the branch up."""
        commit_by_hand(left, left.path.parent, {".tensorport/journal-00001.jsonl": None}, work(left))
        with pytest.raises(DestinationError, match=r"journal-00001\.jsonl"):
            run(left, checkpoint_every=EVERY)
        assert run(left, checkpoint_every=EVERY, restart=True).stats.parts_resumed == 0
        assert read_back(left) == expected
        assert list(left.branches()) == ["main"]

    @pytest.mark.parametrize("host", ["giftless"], indirect=True)
    def test_readers_see_nothing_of_it(self, left: Host, read_back: ReadBack) -> None:
        """While a run is interrupted, the branch that readers see is what it was."""
        assert read_back(left) == {}


class TestOthers:
    """Rivals, and a branch that moves."""

    @few("host", ["giftless"], ["bare path"], indirect=True)
    def test_the_earlier_run_stops(self, hub: DevHub, host: Host, read_back: ReadBack) -> None:
        """A run that sleeps while another one finishes: exit 5 at its next checkpoint, nothing broken."""
        resume, held = threading.Event(), threading.Event()

        def hold(event: Event) -> None:
            if isinstance(event, Saved) and not held.is_set():
                held.set()
                resume.wait(60)

        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(run, host, checkpoint_every=EVERY, on_event=hold)
            assert held.wait(60)
            made = run(host, checkpoint_every=EVERY)
            resume.set()
            with pytest.raises(DestinationError, match="moved meanwhile") as caught:
                early.result()
        assert "taken over" in caught.value.hint
        assert caught.value.exit_code == 5
        assert host.branches() == {"main": made.commit}

    @few("host", ["giftless"], ["bare path"], indirect=True)
    def test_an_overtaken_run_never_publishes(self, hub: DevHub, host: Host) -> None:
        """The other one claims the branch after the last checkpoint: the target stays as it was."""
        branch = work(host)
        saved: list[int] = []

        def claim(event: Event) -> None:
            if isinstance(event, Saved):
                saved.append(event.parts)
                if sum(saved) == PARTS:
                    commit_by_hand(host, host.path.parent, {".tensorport/run.json": None}, branch)

        with pytest.raises(DestinationError, match="moved meanwhile"):
            run(host, checkpoint_every=EVERY, workers=1, on_event=claim)
        assert host.git("ls-tree", "--name-only", "main") == ".gitattributes"
        assert host.git("log", "-1", "--format=%an", branch) == "Other"

    @few("host", ["giftless"], ["bare path"], indirect=True)
    def test_two_at_once_end_in_one_mirror(
        self, hub: DevHub, host: Host, expected: dict[str, bytes], read_back: ReadBack
    ) -> None:
        """One of them, or both, succeed; whoever fails was overtaken; the mirror is whole."""

        def one(_: int) -> str:
            try:
                run(host, workers=1, checkpoint_every=EVERY)
            except DestinationError as error:
                return error.message
            return ""

        with ThreadPoolExecutor(2) as both:
            said = list(both.map(one, range(2)))
        assert "" in said
        assert all("moved meanwhile" in words for words in said if words)
        assert read_back(host) == expected
        assert list(host.branches()) == ["main"]

    @pytest.mark.parametrize("host", ["giftless"], indirect=True)
    @pytest.mark.parametrize("every", [EVERY, "1GB"], ids=["checkpoints", "one commit"])
    def test_a_branch_that_moves_is_not_overwritten(self, hub: DevHub, host: Host, every: Any) -> None:
        """Somebody's commit while we work: exit 5; theirs stays, nothing of ours is in it."""
        commit_by_hand(host, host.path.parent, {".gitattributes": None})
        moved: list[str] = []
        lock = threading.Lock()

        def meanwhile(event: Event) -> None:
            with lock:
                if isinstance(event, PartDone) and not moved:
                    commit_by_hand(host, host.path.parent, {"theirs.txt": None})
                    moved.append(host.branches()["main"])

        with pytest.raises(DestinationError, match=r"`main` of .* moved meanwhile"):
            run(host, checkpoint_every=every, on_event=meanwhile)
        assert host.branches()["main"] == moved[0]

    @pytest.mark.parametrize("every", [EVERY, "1GB"], ids=["checkpoints", "one commit"])
    def test_a_lost_answer(
        self,
        hub: DevHub,
        host_of: Callable[[str], Host],
        expected: dict[str, bytes],
        read_back: ReadBack,
        every: Any,
    ) -> None:
        """Each push is carried out, but the answer never comes: the remote is asked, and it is as it is."""
        host = host_of("giftless")
        assert host.front is not None
        host.front.faults.append(Fault("POST", "*/git-receive-pack", lost=True, times=None))
        result = run(host, checkpoint_every=every)
        assert host.branches() == {"main": result.commit}
        assert read_back(host) == expected

    @pytest.mark.parametrize("host", ["giftless"], indirect=True)
    def test_a_host_without_atomic_pushes(
        self, hub: DevHub, host: Host, expected: dict[str, bytes], read_back: ReadBack
    ) -> None:
        """The mirror is published all the same; the work branch stays behind, and it is said."""
        host.git("config", "receive.advertiseAtomic", "false")
        events: list[Event] = []
        run(host, checkpoint_every=EVERY, on_event=events.append)
        assert any("stays behind" in event.message for event in events if isinstance(event, Warned))
        assert read_back(host) == expected


class TestAnew:
    """`--restart` makes everything itself, also when it is interrupted and continued."""

    @pytest.fixture
    def left(self, hub: DevHub, host_of: Callable[[str], Host]) -> Host:
        """A mirror, and beside it what an interrupted `--restart` left."""
        host = host_of("bare path")
        run(host)
        hub.faults.add(HubFault("status", "GET", "cdn", status=404, after=FILES + 2, times=None))
        with pytest.raises(SourceError):
            run(host, restart=True, checkpoint_every=EVERY, workers=1)
        hub.faults.clear()
        assert work(host) in host.branches()
        return host

    @pytest.mark.parametrize("every", [EVERY, "1GB"], ids=["checkpoints", "one commit"])
    def test_it_is_continued(
        self, left: Host, expected: dict[str, bytes], read_back: ReadBack, every: Any
    ) -> None:
        """Without `--restart` the next run goes on, and believes nothing of what stands."""
        assert not plan(SOURCE, left.url, checkpoint_every=every).standing
        result = run(left, checkpoint_every=every)
        assert (result.stats.parts_kept, result.stats.parts_resumed > 0) == (0, True)
        assert result.stats.bytes_read > 0
        assert read_back(left) == expected
        assert list(left.branches()) == ["main"]
        assert plan(SOURCE, left.url, checkpoint_every=every).standing

    def test_another_branch_has_its_own(self, left: Host) -> None:
        """What is begun anew for one branch is not for another of the same plan."""
        before = left.branches()
        assert not run(left, branch="main").changed
        run(left, branch="npy", checkpoint_every=EVERY)
        assert left.branches().keys() == {*before, "npy"}

    def test_restart_again(self, left: Host) -> None:
        """It gives up what was left, also where no checkpoints are needed."""
        assert run(left, restart=True).stats.parts_resumed == 0
        assert list(left.branches()) == ["main"]


def test_what_moved_since_the_plan(hub: DevHub, host_of: Callable[[str], Host]) -> None:
    """Another run publishes between plan and run: it is not overwritten by what was planned before."""
    host = host_of("bare path")
    run(host)
    old = plan(SOURCE, host.url).plan.commit
    hub.add_repo(SOURCE, {"config.json": b'{"new": 1}'})

    def rival(event: Event) -> None:
        if isinstance(event, Planned):
            run(host)

    with pytest.raises(DestinationError, match="moved since the plan was made"):
        run(host, revision=old, restart=True, on_event=rival)
    assert host.git("show", "main:config.json") == '{"new": 1}'


@pytest.fixture
def start(tmp_path: Path, hub: DevHub) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program in a process of its own."""
    begun: list[subprocess.Popen[str]] = []

    def go(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tensorport_hub", *words]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True))
        return begun[-1]

    yield go
    for process in begun:
        process.kill()
        process.communicate()


@few("host", ["giftless"], ["bare path"], indirect=True)
def test_kills(
    hub: DevHub,
    host: Host,
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    expected: dict[str, bytes],
    read_back: ReadBack,
) -> None:
    """SIGKILL again and again: each next run continues from the remote alone, readers see nothing until all
    is there, and what a killed run left on the disk is removed by the next one."""
    words = ["mirror", SOURCE, host.url, "--checkpoint-every", "100kB", "--workers", "1", "--no-progress"]
    scratch = tmp_path / "scratch"
    branch = work(host)
    for reads, kept in ((2 * FILES - 1, TENSORS), *[(FILES, 0)] * (2 if FULL else 1)):
        hub.faults.add(HubFault("stall", "GET", "cdn", seconds=50, after=reads, times=None))
        process = start(*words)
        wait_for(lambda: bool(hub.faults.fired), process)
        wait_for(lambda n=kept: parts_on(host, branch) >= n, process)  # type: ignore[misc]
        process.kill()
        process.wait()
        hub.faults.clear()
        assert len(list(scratch.glob("tensorport-git-*"))) == 1
        for left in scratch.glob("tensorport-git-*"):
            os.utime(left / "lock", (0, 0))
        assert "main" not in host.branches() or read_back(host) == {}
    last = start(*words, "--json")
    shown, said = last.communicate(timeout=120)
    assert last.returncode == 0, said
    assert json.loads(shown)["stats"]["parts_resumed"] >= TENSORS
    assert read_back(host) == expected
    assert not list(scratch.glob("tensorport-git-*"))


def parts_on(host: Host, branch: str) -> int:
    """How many parts a branch holds; none where there is none."""
    if branch not in host.branches():
        return 0
    return host.git("ls-tree", "-r", "--name-only", branch).count(".npy")


@few("number, code", [(signal.SIGINT, 130)], [(signal.SIGTERM, 143)])
def test_signals(
    hub: DevHub,
    host_of: Callable[[str], Host],
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    """While the LFS server is silent: the run ends within seconds, with all that it started, says the command
    that continues it, and leaves nothing on the disk."""
    host = host_of("giftless")
    assert host.front is not None
    host.front.faults.append(Fault("PUT", "*", seconds=100, after=4, times=None))
    words = ["mirror", SOURCE, host.url, "--checkpoint-every", "150kB", "--no-progress"]
    process = start(*words)
    wait_for(lambda: any(fault.struck for fault in host.front.faults), process)  # type: ignore[union-attr]
    assert children()
    process.send_signal(number)
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < 20
    assert process.returncode == code, said
    assert f"hint: `tensorport-hub {' '.join(words)}` continues" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "scratch").glob("tensorport-git-*"))
    wait_for_none(children)
    host.front.faults.clear()
    again = start(*words, "--json")
    shown, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert '"parts_resumed": 0' not in shown


def children() -> list[bytes]:
    """Command lines of all git-lfs processes of this machine that push from a repository of ours."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, where = (process / "cmdline").read_bytes(), os.readlink(process / "cwd")
        except OSError:
            continue
        if b"git-lfs" in words and "tensorport-git-" in where:
            found.append(words)
    return found


def wait_for_none(what: Callable[[], list[bytes]]) -> None:
    deadline = time.monotonic() + 10
    while what():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)
