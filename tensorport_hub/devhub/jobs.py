"""Jobs: what was asked to run, kept as it was asked. A devhub runs none of it.

A job, or a scheduled one, is a spec (image, command, environment, secrets, flavor, timeout) in a namespace.
The values of secrets are told to nobody over the API, as on the Hub; tests read them here.

Source: `run_job`, `create_scheduled_job` and their like in huggingface_hub's `hf_api.py`, `JobInfo` and
`ScheduledJobInfo` in its `_jobs_api.py`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tensorport_hub.devhub import access
from tensorport_hub.devhub.accounts import now
from tensorport_hub.devhub.database import Database
from tensorport_hub.devhub.hub import Call
from tensorport_hub.devhub.refusals import Refusal, bad_request


@dataclass(frozen=True)
class AskedJob:
    """One job as it was asked for; `schedule` is None for one that runs at once."""

    id: str
    namespace: str
    spec: Mapping[str, Any]
    schedule: str | None
    concurrency: bool
    created_at: str

    def told(self) -> dict[str, Any]:
        """As the API tells it: of secrets their names alone."""
        spec = {**self.spec, "secrets": dict.fromkeys(self.spec.get("secrets", {}), "")}
        owner = {"id": f"user-{self.namespace}", "name": self.namespace, "type": "user"}
        head = {"id": self.id, "createdAt": self.created_at, "owner": owner}
        if self.schedule is not None:
            when = {"schedule": self.schedule, "concurrency": self.concurrency, "suspend": False}
            return {**head, **when, "jobSpec": spec, "status": {}}
        return {**spec, **head, "status": {"stage": "SCHEDULING", "message": "a devhub runs no jobs"}}


def _job(row: sqlite3.Row) -> AskedJob:
    spec, concurrency = json.loads(row["spec"]), bool(row["concurrency"])
    return AskedJob(row["id"], row["namespace"], spec, row["schedule"], concurrency, row["created_at"])


def all_jobs(db: Database) -> list[AskedJob]:
    """Every job, oldest first."""
    with db.read() as con:
        return [_job(row) for row in con.execute("SELECT * FROM jobs ORDER BY rowid").fetchall()]


def _namespace(call: Call) -> str:
    namespace = call.params["ns"]
    access.writer(call, namespace)
    return namespace


def _ask(call: Call, spec: Any, schedule: str | None, concurrency: bool = False) -> AskedJob:
    namespace = _namespace(call)
    if not isinstance(spec, dict) or not isinstance(spec.get("command"), list) or not spec["command"]:
        raise bad_request("A job needs a command")
    if not (spec.get("dockerImage") or spec.get("spaceId")):
        raise bad_request("A job needs a dockerImage or a spaceId")
    job = AskedJob(secrets.token_hex(12), namespace, spec, schedule, concurrency, now())
    with call.hub.db.write() as con:
        row = (job.id, namespace, json.dumps(spec), schedule, concurrency, job.created_at)
        con.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)", row)
    return job


def _mine(call: Call, *, scheduled: bool) -> list[AskedJob]:
    namespace = _namespace(call)
    found = [job for job in all_jobs(call.hub.db) if job.namespace == namespace]
    return [job for job in reversed(found) if (job.schedule is not None) == scheduled]


def _is_scheduled(call: Call) -> bool:
    return call.path.startswith("/api/scheduled-jobs/")


def create(call: Call) -> web.Response:
    said = call.json()
    if not _is_scheduled(call):
        return web.json_response(_ask(call, said, None).told())
    if not isinstance(said.get("schedule"), str):
        raise bad_request("A scheduled job needs a schedule")
    concurrency = bool(said.get("concurrency"))
    return web.json_response(_ask(call, said.get("jobSpec"), said["schedule"], concurrency).told())


def listing(call: Call) -> web.Response:
    return web.json_response([job.told() for job in _mine(call, scheduled=_is_scheduled(call))])


def details(call: Call) -> web.Response:
    for job in _mine(call, scheduled=_is_scheduled(call)):
        if job.id == call.params["id"]:
            return web.json_response(job.told())
    raise Refusal(404, "Job not found")


def delete(call: Call) -> web.Response:
    """Scheduled ones alone can be deleted."""
    details(call)
    with call.hub.db.write() as con:
        con.execute("DELETE FROM jobs WHERE id = ?", (call.params["id"],))
    return web.json_response({})
