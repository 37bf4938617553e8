"""`python -m tensorport_hub` is the same program."""

from tensorport_hub.cli import main

if __name__ == "__main__":
    main()
