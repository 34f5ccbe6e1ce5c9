"""Run advml from a checkout without installing it: `python cli.py run method=supervised`."""

from advml.cli import console

if __name__ == "__main__":
    console()
