"""`python -m tensorport_hub`, and what the console scripts call: interrupts are answered before all else."""

from __future__ import annotations

from typing import NoReturn

from tensorport_hub import interrupt


def main() -> NoReturn:
    """The program."""
    interrupt.end_at_once()
    from tensorport_hub import cli

    cli.main()


if __name__ == "__main__":
    main()
