"""A repository on the Hub as a destination: what it holds, what may be done with it, and how it is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from tensorport_hub.core import manifest, proof, resync
from tensorport_hub.core.mirror import Mirror
from tensorport_hub.core.plan import Plan
from tensorport_hub.core.progress import Progress
from tensorport_hub.core.tensor import shorten
from tensorport_hub.destination import Opened, Publication, readable, refuse_other, whole
from tensorport_hub.edge.hub_answers import RepoState
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_find import open_work
from tensorport_hub.edge.hub_ref import KEPT, HubRef
from tensorport_hub.edge.hub_sink import HubSink
from tensorport_hub.edge.hub_store import HubStore
from tensorport_hub.edge.hub_work import FOLDER, Request
from tensorport_hub.edge.journal import Unkept
from tensorport_hub.edge.ref_journal import RefJournal, checkpoints_of
from tensorport_hub.edge.retry import retried
from tensorport_hub.errors import DestinationError, LimitError, gather
from tensorport_hub.ports import Published, Report, Warned

FOLDER_ENTRIES = 10_000
"""Entries that a folder on the Hub may have."""

_MANY_FILES = 100_000
_LARGEST_FILE = 500_000_000_000


class HubDestination:
    """A model repository on the Hub.

    Raises:
        DestinationError: it holds something that we did not make, something closed would be opened, or no
            token is there that may write to it, as far as that can be known.
    """

    def __init__(
        self,
        client: HubClient,
        repo_id: str,
        publication: Publication,
        *,
        source: str,
        closed: bool,
        read_seconds: float,
        report: Report,
    ) -> None:
        self._client, self._publication, self._report = client, publication, report
        self._read_seconds = read_seconds
        self._closed_source = source if closed else None
        self._paths: Sequence[str] = ()
        self._manifests: dict[str, bytes] = {}
        self.inherited = Progress()
        self.name = repo_id
        self.streams = publication.transfer != "lfs"
        self.stages = not self.streams
        self._wanted = closed if publication.private is None else publication.private
        client.require_token()
        self._there = self._look()
        if self._there is None and not retried(lambda: client.may_create(repo_id), report):
            raise DestinationError(
                f"a new repository `{repo_id}` is forbidden: the token may not write to that namespace",
                hint="choose one of yours, or a token that may write there",
            )
        self.exists = self._there is not None
        self.private: bool | None = self._there.private if self._there is not None else self._wanted

    def _look(self) -> RepoState | None:
        """The state of the branch that readers see, or that it begins from; None without a repository.

        Raises:
            DestinationError: nothing may be published there.
        """
        client, report = self._client, self._report
        state = retried(lambda: client.find_repo(self.name), report)
        branch = self._publication.branch
        self._begins = branch is not None and (state is None or branch not in self._branches())
        if state is not None and branch is not None and not self._begins:
            state = retried(lambda: client.repo_state(self.name, branch, DestinationError), report)
        private = state.private if state is not None else self._wanted
        self._refuse_visibility(state)
        if self._closed_source is not None and not private and not self._publication.i_have_rights:
            raise DestinationError(
                f"`{self._closed_source}` is gated or private, `{self.name}` would be open",
                hint=("`--private` keeps it closed" if state is None else "make it private in its settings")
                + "; `--i-have-rights` if you may publish it",
            )
        if state is not None:
            self._refuse_strangers(state)
        return state

    def _refuse_visibility(self, state: RepoState | None) -> None:
        """Refuse a repository that is not as `--private` or `--public` says: only a new one is made so."""
        wanted = self._publication.private
        if state is None or wanted is None or state.private == wanted:
            return
        words = {True: "private", False: "public"}
        raise DestinationError(
            f"`{self.name}` exists and is {words[state.private]}: expected {words[wanted]}, because of"
            f" `--{words[wanted]}`",
            hint=f"make it {words[wanted]} in its settings, or leave out `--{words[wanted]}`",
        )

    def _branches(self) -> list[str]:
        refs = retried(
            lambda: self._client.call(
                lambda api: api.list_repo_refs(self.name), f"the branches of `{self.name}`"
            ),
            self._report,
        )
        return [ref.name for ref in refs.branches]

    def _refuse_strangers(self, state: RepoState) -> None:
        paths = {file.path for file in state.files if not file.path.startswith(FOLDER)}
        if paths <= KEPT:
            return
        if manifest.PATH not in paths or not manifest.is_mirror(self._manifest(state)):
            raise DestinationError(
                f"`{self.name}` exists and is no mirror of ours: it holds {len(paths)} files",
                hint="choose another name, or delete that repository first",
            )
        there = readable(self._manifest(state))
        strange = sorted(paths - there.files.keys() - proof.UNLISTED) if there is not None else []
        if strange and not self._publication.restart:
            raise DestinationError(
                f"`{self.name}` holds {len(strange)} files that are not of the mirror, among them"
                f" `{shorten(strange[0])}`",
                hint="move them elsewhere; `--restart` makes the mirror anew without them",
            )

    def _manifest(self, state: RepoState) -> bytes:
        if state.commit not in self._manifests:
            self._manifests[state.commit] = self._read_manifest(state)
        return self._manifests[state.commit]

    def _read_manifest(self, state: RepoState) -> bytes:
        manifest.check_size(next(file.size for file in state.files if file.path == manifest.PATH))
        return retried(lambda: self._client.read_file(self.name, manifest.PATH, state.commit), self._report)

    def check(self, plan: Plan, key: str, paths: Sequence[str]) -> None:
        self._paths = paths
        there = self._there
        if there is not None and not self._publication.restart and _has_manifest(there):
            if not self._begins:
                is_anew = partial(self._is_begun_anew, there, plan, key)
                refuse_other(plan, self._manifest(there), self.name, is_anew)
            mirror = readable(self._manifest(there))
            self.inherited = resync.inherited(plan, mirror) if mirror is not None else Progress()
        problems = []
        entries = Counter(path.rpartition("/")[0] for path in paths)
        entries[""] += len({path.split("/")[0] for path in paths if "/" in path})
        for folder, count in entries.items():
            if count > FOLDER_ENTRIES:
                problems.append(
                    f"folder `{folder or '/'}` would hold {count} entries: expected at most {FOLDER_ENTRIES}"
                )
        largest = max(plan.outputs, key=lambda file: file.size, default=None)
        if largest is not None and largest.size > _LARGEST_FILE:
            problems.append(f"`{largest.path}` has {largest.size} bytes: expected at most {_LARGEST_FILE}")
        if self._publication.transfer == "lfs" and plan.bytes_at_once > self._publication.max_disk:
            problems.append(
                f"files that are written at the same time do not fit the staging space: expected at most"
                f" {self._publication.max_disk} bytes, got {plan.bytes_at_once}"
            )
        if problems:
            raise gather(LimitError, problems, hint="raise `--max-disk`, or change `--shard-size`")
        if len(paths) > _MANY_FILES:
            self._report(
                Warned(f"the mirror has {len(paths):,} files; the Hub recommends at most {_MANY_FILES:,}")
            )

    def checkpoints(self, plan: Plan) -> int | None:
        there = {f.path: (f.size, f.sha256) for f in self._there.files} if self._there is not None else {}
        kept = self.inherited.made
        unchanged = {
            file.path
            for file in plan.outputs
            if (made := kept.get(file.index)) and there.get(file.path) == (made.size, made.sha256)
        }
        nbytes = sum(file.size for file in plan.outputs if file.index not in kept)
        files = len((there.keys() | set(self._paths)) - unchanged)
        return checkpoints_of(nbytes, files, every=self._publication.checkpoint_every)

    def standing(self, plan: Plan, key: str) -> tuple[Mirror, Published] | None:
        state = self._there
        if state is None or self._begins or not _has_manifest(state):
            return None
        there = whole(self._manifest(state), state.files, plan)
        if there is None or self._is_begun_anew(state, plan, key):
            return None
        page = self._client.page(self.name, state.commit)
        return there, Published(self.name, state.commit, page, changed=False)

    def _is_begun_anew(self, state: RepoState, plan: Plan, key: str) -> bool:
        """Whether a run that was to make everything itself was interrupted."""
        target = HubRef(self._client, state, self._publication.branch or "main", self._report)
        try:
            work = open_work(target, self._request(plan, key), restart=False, needed=False)
        except DestinationError:  # it stands on another state: no run continues it
            return False
        return work is not None and work.anew

    def _request(self, plan: Plan, key: str) -> Request:
        publication = self._publication
        return Request(
            key,
            publication.title(plan),
            retried(self._client.whoami, self._report),
            publication.branch,
            offer=publication.create_pr,
            anew=publication.restart,
        )

    def open(self, plan: Plan, key: str, *, writers: int, uploads: int) -> Opened:
        publication, report = self._publication, self._report
        target, request = self._target(), self._request(plan, key)
        needed = publication.create_pr or self.checkpoints(plan) is not None
        work = open_work(target, request, restart=publication.restart, needed=needed)
        with ExitStack() as undo:
            store = HubStore.of(
                self._client,
                self.name,
                transfer=publication.transfer,
                max_disk=publication.max_disk,
                writers=writers,
                uploads=uploads,
                read_seconds=self._read_seconds,
                report=report,
            )
            undo.callback(store.close)
            self.streams = store.streams
            journal: RefJournal | Unkept = Unkept()
            if work is not None and not work.is_complete:
                work.claim()
                paths = {file.index: file.path for file in plan.outputs}
                journal = RefJournal(work, outputs=paths, every=publication.checkpoint_every, report=report)
            sink = HubSink(
                self._client,
                target,
                work,
                store=store,
                journal=journal,
                message=publication.title(plan),
                offer=publication.create_pr,
                begun=self._begins,
                report=report,
            )
            anew = publication.restart or (work is not None and work.anew)
            opened = Opened(sink, journal, anew, self._finish(sink, plan))
            undo.pop_all()
        return opened

    def close(self) -> None:
        """Nothing is held."""

    def _target(self) -> HubRef:
        """The branch that readers see; the repository and it are made where they are missing.

        Raises:
            DestinationError: it is not what it was when the plan was made.
        """
        client, branch = self._client, self._publication.branch
        planned, there = self._there, self._look()
        if (there and there.commit) != (planned and planned.commit):
            raise DestinationError(
                f"`{self.name}` moved since the plan was made: expected"
                f" {planned.commit if planned else 'no repository'}, got {there.commit if there else 'none'}",
                hint="somebody else writes there; run again",
            )
        if there is None:
            retried(lambda: client.create_repo(self.name, private=self._wanted), self._report)
        if branch is not None and self._begins:
            retried(
                lambda: client.call(
                    lambda api: api.create_branch(self.name, branch=branch, exist_ok=True),
                    f"branch `{branch}` of `{self.name}`",
                ),
                self._report,
            )
        return HubRef.of(client, self.name, branch or "main", self._report)

    def _finish(self, sink: HubSink, plan: Plan) -> tuple[Mirror, Published] | None:
        """Publish what an interrupted run had completed."""
        left = sink.left_complete()
        if left is None:
            return None
        state, data = left
        there = readable(data)
        if there is None or not proof.is_like(there, plan) or proof.check_files(there, state):
            raise DestinationError(
                f"what an interrupted run left on `{self.name}` is complete, but not what this plan makes",
                hint="`--restart` gives it up and begins anew",
            )
        return there, sink.publish()


def _has_manifest(state: RepoState) -> bool:
    return any(file.path == manifest.PATH for file in state.files)
