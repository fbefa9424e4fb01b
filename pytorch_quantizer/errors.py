"""The one exception for a mistake in what a user gave: a name, a number, a file, a model.
Bugs of this package are not InputErrors and keep their traceback.
"""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """A user's mistake. The message is one line: the thing, the rule, the value and the remedy."""


def first_line(error: Exception) -> str:
    """What a foreign error says, for an InputError's one line; its type where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """What an InputError says behind a name that isn't known: the one that is nearly it, else all that are."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(known)}"
