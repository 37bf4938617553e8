"""Our workflows: their schemas, their security, and the chain of jobs that the mirror's one is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tensorport_hub.devhub import DevHub, Fault
from tests.actions.runner import ACTION, ROOT, WORKFLOW, Runner

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("schema", "files"),
    [("vendor.github-workflows", WORKFLOWS), ("vendor.github-actions", [ACTION / "action.yml"])],
)
def test_they_are_what_the_schemas_say(schema: str, files: list[Path]) -> None:
    """GitHub's own schemas, as check-jsonschema carries them."""
    words = [str(BIN / "check-jsonschema"), "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_that_the_readme_shows_is_one(tmp_path: Path) -> None:
    """It is what the schema says, and gives ours the inputs and secrets that it takes."""
    text = (ROOT / "README.md").read_text()
    (shown,) = re.findall(r"```yaml\n(on:.*?)```", text, re.DOTALL)
    (tmp_path / "mirror.yml").write_text(shown)
    test_they_are_what_the_schemas_say("vendor.github-workflows", [tmp_path / "mirror.yml"])
    taken = yaml.safe_load(WORKFLOW.read_text())[True]["workflow_call"]
    (job,) = yaml.safe_load(shown)["jobs"].values()
    assert job["uses"] == f"OWNER/hf-tensorport/{WORKFLOW.relative_to(ROOT).as_posix()}@COMMIT"
    assert set(job["with"]) <= set(taken["inputs"])
    assert set(job["secrets"]) <= set(taken["secrets"])


def test_zizmor_finds_nothing() -> None:
    """No injection, no unpinned action, no credential left behind, no permission too many."""
    words = [str(BIN / "zizmor"), "--offline", "--no-progress", str(ROOT / ".github")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No findings to report" in done.stdout + done.stderr


def test_a_job_ends_by_itself_before_github_ends_it() -> None:
    """The action's minutes lie below each job's limit, and that below the six hours of a hosted runner."""
    minutes = int(yaml.safe_load((ACTION / "action.yml").read_text())["inputs"]["minutes"]["default"])
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    assert all(minutes + 10 <= job["timeout-minutes"] < 360 for job in jobs)


def test_jobs_continue_each_other(machine: Runner, hub: DevHub) -> None:
    """Once the first job's time is over the second continues; the caller gets the outputs of the last."""
    hub.faults.add(Fault("stall", origin="cdn", at=64, times=None, seconds=60, after=1))
    inputs = {
        "source": "openai/tiny",
        "destination": "me/tiny",
        "options": "--pr",
        "trusted-publishing": False,
    }
    secrets = {"HF_TOKEN": hub.token}
    ran, _ = machine.workflow(inputs, variables={}, secrets=secrets, minutes=["0.1", "0.05", "0.05"])
    assert [(done.code, done.outputs["state"]) for done in ran.values()] == [
        (0, "unfinished"),
        (0, "unfinished"),
        (1, "unfinished"),
    ]
    hub.faults.clear()
    hub.faults.add(Fault("stall", origin="cdn", at=64, times=1, seconds=60, after=1))
    ran, outputs = machine.workflow(inputs, variables={}, secrets=secrets, minutes=["0.1", "4"])
    assert [done.outputs["state"] for done in ran.values()] == ["unfinished", "done"], ran["first"].log
    assert outputs == {
        "state": "done",
        "commit-url": ran["second"].outputs["commit-url"],
        "pr-url": f"{hub.endpoint}/me/tiny/discussions/1",
        "manifest": ran["second"].outputs["manifest"],
    }


def test_a_schedule_takes_the_variables(machine: Runner, hub: DevHub) -> None:
    """Without inputs the repository's variables say what to mirror; without them nothing runs."""
    assert machine.workflow({}, variables={}, secrets={}, minutes=[]) == (
        {},
        {"state": "", "commit-url": "", "pr-url": "", "manifest": ""},
    )
    variables = {"MIRROR_SOURCE": "openai/tiny", "MIRROR_DESTINATION": "me/weekly"}
    secrets = {"HF_TOKEN": hub.token}
    ran, outputs = machine.workflow({}, variables=variables, secrets=secrets, minutes=["4"])
    assert list(ran) == ["first"]
    assert outputs["state"] == "done", ran["first"].log
    asked = {"source": "openai/tiny", "destination": "", "options": "", "trusted-publishing": False}
    ran, _ = machine.workflow(asked, variables=variables, secrets=secrets, minutes=["4"])
    assert ran["first"].outputs["commit-url"].startswith(f"{hub.endpoint}/me/tiny-npy/commit/")
