"""The one exception for a mistake in what a user gave: a name, a number, a file, a model.
Bugs of this package are not InputErrors and keep their traceback.
"""


class InputError(ValueError):
    """A user's mistake. The message is one line: the thing, the rule, the value and the remedy."""


def first_line(error: Exception) -> str:
    """What a foreign error says, for an InputError's one line; its type where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
