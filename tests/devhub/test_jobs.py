"""Jobs: accepted and told as the real client asks for them and reads them; none runs."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from tensorport_hub.devhub import DevHub


def test_a_job(hub: DevHub, api: HfApi) -> None:
    """What was asked is kept; secrets' values are in no answer."""
    job = api.run_job(
        image="python:3.12",
        command=["echo", "hi"],
        env={"A": "1"},
        secrets={"HF_TOKEN": "s3"},
        flavor="cpu-upgrade",
        timeout="2h",
    )
    assert (job.command, job.docker_image, job.environment) == (["echo", "hi"], "python:3.12", {"A": "1"})
    assert (job.secrets, job.status.stage, job.owner.name) == ({"HF_TOKEN": ""}, "SCHEDULING", "me")
    assert job.url == f"{hub.endpoint}/jobs/me/{job.id}"
    assert api.inspect_job(job_id=job.id) == job
    assert list(api.list_jobs(namespace="me")) == [job]
    [asked] = hub.jobs
    assert (asked.id, asked.namespace, asked.schedule) == (job.id, "me", None)
    assert asked.spec["secrets"] == {"HF_TOKEN": "s3"}
    assert asked.spec["timeoutSeconds"] == 7200


def test_a_scheduled_job(hub: DevHub, api: HfApi) -> None:
    """Made, looked at, listed and deleted."""
    job = api.create_scheduled_job(
        image="python:3.12",
        command=["echo", "hi"],
        schedule="@daily",
        secrets={"HF_TOKEN": "s3"},
        concurrency=True,
    )
    assert (job.schedule, job.suspend, job.concurrency) == ("@daily", False, True)
    assert job.job_spec.command == ["echo", "hi"]
    assert job.job_spec.secrets == {"HF_TOKEN": ""}
    assert api.inspect_scheduled_job(scheduled_job_id=job.id) == job
    assert api.list_scheduled_jobs() == [job]
    assert list(api.list_jobs(namespace="me")) == []
    assert hub.jobs[0].schedule == "@daily"
    api.delete_scheduled_job(scheduled_job_id=job.id)
    assert api.list_scheduled_jobs() == []


def test_what_is_refused(hub: DevHub, api: HfApi, stranger: HfApi) -> None:
    """Other people's namespaces, and jobs without a command."""
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.run_job(image="python:3.12", command=["x"], namespace="me")
    with pytest.raises(HfHubHTTPError, match="needs a command"):
        api.run_job(image="python:3.12", command=[])
    with pytest.raises(HfHubHTTPError, match="404"):
        api.inspect_job(job_id="abc")
    assert hub.jobs == []
