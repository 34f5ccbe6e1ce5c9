"""The two ways in which a command ends badly on purpose. Both carry text for a person, never a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class AdvmlError(Exception):
    """Something went wrong that the user can mend; the message says what and how. Exit code 1."""

    exit_code = 1


class ConfigError(AdvmlError):
    """The command or the configuration is wrong. Holds every mistake found, one line each. Exit code 2."""

    exit_code = 2

    def __init__(self, mistakes: str | Iterable[str]) -> None:
        self.mistakes = (mistakes,) if isinstance(mistakes, str) else tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean method.lr?` for the known word nearest to `word`, otherwise an empty string."""
    near = get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
