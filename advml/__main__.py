"""`python -m advml` is `advml`."""

from advml.cli import console

console()
