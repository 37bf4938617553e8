"""A runner of our own workflows: it does what GitHub's does with the keys that we use, and fails at others.

Steps are executed with the very bash command of GitHub's runner, in a workspace of their own, with real
files for outputs, summary, environment and path.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.actions.expressions import as_text, evaluate, fill

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github/actions/mirror"
WORKFLOW = ROOT / ".github/workflows/mirror.yml"
FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ENV", "GITHUB_PATH")


@dataclass
class Ran:
    """What an action or a job did."""

    code: int = 0
    log: str = ""
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass
class Runner:
    """One virtual machine; here `temp` outlives the jobs that run on it: the tool is installed once."""

    temp: Path
    workspace: Path
    env: Mapping[str, str]

    def action(self, given: Mapping[str, Any], *, only: str | None = None) -> Ran:
        """Run the composite action; with `only`, its step of that name alone."""
        described = yaml.safe_load((ACTION / "action.yml").read_text())
        assert described["runs"]["using"] == "composite"
        unknown = set(given) - set(described["inputs"])
        assert not unknown, f"the action has no inputs {unknown}"
        missing = [name for name, said in described["inputs"].items() if said.get("required")]
        assert set(missing) <= set(given)
        inputs = {name: said.get("default", "") for name, said in described["inputs"].items()}
        inputs |= {name: as_text(value) for name, value in given.items()}
        ran, env, steps = Ran(), dict(self.env), {}
        for step in described["runs"]["steps"]:
            if only in (None, step["name"]):
                outputs = self._step(step, {"inputs": inputs, "steps": steps}, env, ran)
                steps[step.get("id", step["name"])] = {"outputs": outputs}
            if ran.code:
                break
        ran.outputs = {
            name: fill(said["value"], {"inputs": inputs, "steps": steps})
            for name, said in described["outputs"].items()
        }
        return ran

    def _step(
        self, step: Mapping[str, Any], contexts: Mapping[str, Any], env: dict[str, str], ran: Ran
    ) -> dict[str, str]:
        assert set(step) <= {"name", "id", "shell", "env", "run"}, f"step with {set(step)}"
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "an expression in a script is code that its author did not write"
        files = {name: self.temp / f"{name.lower()}-{step['name']}" for name in FILES}
        script = self.temp / "step.sh"
        script.write_text(step["run"])
        for path in files.values():
            path.write_text("")
        own = {name: fill(text, contexts) for name, text in (step.get("env") or {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=self.workspace,
            env={
                **env,
                "RUNNER_TEMP": str(self.temp),
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(ACTION),
                "GITHUB_WORKSPACE": str(self.workspace),
                **{name: str(path) for name, path in files.items()},
                **own,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        ran.code, ran.log = done.returncode, ran.log + done.stdout
        ran.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        env |= assignments(files["GITHUB_ENV"].read_text())
        for folder in reversed(files["GITHUB_PATH"].read_text().splitlines()):
            env["PATH"] = f"{folder}:{env['PATH']}"
        return assignments(files["GITHUB_OUTPUT"].read_text())

    def workflow(
        self,
        inputs: Mapping[str, Any],
        *,
        variables: Mapping[str, str],
        secrets: Mapping[str, str],
        minutes: Sequence[str],
    ) -> tuple[dict[str, Ran], dict[str, str]]:
        """The jobs that ran, and the workflow's outputs to a caller; each job gets so many `minutes`."""
        described = yaml.safe_load(WORKFLOW.read_text())
        contexts = {"inputs": inputs, "vars": variables, "secrets": secrets}
        ran: dict[str, Ran] = {}
        for name, job in described["jobs"].items():
            assert set(job) == {
                *("if", "runs-on", "timeout-minutes", "permissions", "outputs", "steps"),
                *({"needs"} & set(job)),
            }
            needs = {job["needs"]: ran.get(job["needs"])} if "needs" in job else {}
            ready = all(before is not None and not before.code for before in needs.values())
            seen = {
                other: {"outputs": before.outputs} for other, before in needs.items() if before is not None
            }
            if not ready or not evaluate(job["if"], {**contexts, "needs": seen}):
                continue
            (step,) = job["steps"]
            assert set(step) == {"id", "uses", "with"}
            assert ROOT / step["uses"].removeprefix("$/") == ACTION
            given = {key: fill(str(text), contexts) for key, text in step["with"].items()}
            done = self.action({**given, "minutes": minutes[len(ran)]}, only="Mirror")
            outputs = {"steps": {step["id"]: {"outputs": done.outputs}}}
            done.outputs = {key: fill(text, outputs) for key, text in job["outputs"].items()}
            ran[name] = done
        jobs = {name: {"outputs": done.outputs} for name, done in ran.items()}
        said = described[True]["workflow_call"]["outputs"]  # YAML 1.1 reads the key `on` as true
        return ran, {name: fill(out["value"], {**contexts, "jobs": jobs}) for name, out in said.items()}


def assignments(text: str) -> dict[str, str]:
    """What a step wrote to `GITHUB_OUTPUT` or `GITHUB_ENV`: `name=value`, or lines between equal words."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if several := re.fullmatch(r"([^=<]+)<<(.+)", line):
            held = []
            while (inner := next(lines)) != several[2]:
                held.append(inner)
            found[several[1]] = "\n".join(held)
        else:
            name, _, value = line.partition("=")
            found[name] = value
    return found


def machine_env(home: Path) -> dict[str, str]:
    """The environment of a fresh machine, on which pip finds our packages instead of an index."""
    kept = {name: os.environ[name] for name in ("LANG", "HF_ENDPOINT") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as "no isolation"; the builder is ours, too
    }
