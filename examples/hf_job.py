"""Mirror a list of models by one Hugging Face Job, once or on a schedule.

    PACKAGE="tensorport-hub[cluster] @ git+https://github.com/OWNER/hf-tensorport"
    python hf_job.py mirrors.toml --package "$PACKAGE"                       # now
    python hf_job.py mirrors.toml --package "$PACKAGE" --schedule "@daily"   # again and again; or CRON
    python hf_job.py mirrors.toml --package "$PACKAGE" --cluster local:4

The list is that of `tensorport-hub mirror --from-file`; it travels in the job's environment. Your token
travels as the job's secret, never in its command. What a job that hits its timeout had finished by its last
checkpoint stays: the next one continues.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from huggingface_hub import HfApi, get_token

from tensorport_hub import TensorportError, read_orders

IMAGE = "python:3.12"
COMMAND = (
    'python -m pip install -q "$PACKAGE" &&'
    ' printf %s "$MIRRORS" | tensorport-hub mirror --from-file - ${CLUSTER:+--cluster "$CLUSTER"}'
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mirror a list of models by one Hugging Face Job.")
    parser.add_argument("list", type=Path, help="TOML file with [[mirror]] tables")
    parser.add_argument(
        "--schedule", help="@hourly, @daily, @weekly or a CRON expression; without: once, now"
    )
    parser.add_argument("--flavor", default="cpu-upgrade", help="hardware (cpu-upgrade)")
    parser.add_argument("--timeout", default="6h", help="when the job is ended (6h)")
    parser.add_argument("--namespace", help="organization that the job belongs to (you)")
    parser.add_argument("--cluster", default="", help="local:N: so many worker processes in the job")
    parser.add_argument("--package", required=True, help="what pip installs in the job")
    given = parser.parse_args()
    try:
        read_orders(given.list)  # all that is wrong is said here and now, not by a job
    except TensorportError as error:
        sys.exit(f"{error.message}\nhint: {error.hint or 'see examples/README.md'}")
    token = get_token()
    if token is None:
        sys.exit("no token: log in with `hf auth login`, or set HF_TOKEN")
    asked = {
        "image": IMAGE,
        "command": ["bash", "-c", COMMAND],
        "env": {
            "MIRRORS": given.list.read_text(encoding="utf-8"),
            "PACKAGE": given.package,
            "CLUSTER": given.cluster,
        },
        "secrets": {"HF_TOKEN": token},
        "flavor": given.flavor,
        "timeout": given.timeout,
        "namespace": given.namespace,
    }
    api = HfApi()
    if given.schedule is None:
        print(api.run_job(**asked).url)
    else:
        job = api.create_scheduled_job(**asked, schedule=given.schedule, concurrency=False)
        print(f"job {job.id} runs {job.schedule}")


if __name__ == "__main__":
    main()
