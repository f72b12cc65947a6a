"""Define the exceptions for input that cannot be used.

The command line prints them as one line on stderr and exits with code 2.
"""

MAX_SHOWN = 200  # characters of a value in a message


class InputError(ValueError):
    """Report input that cannot be used: the message gives the value, the place and the cure."""


class UnavailableError(InputError):
    """Report that a file, folder, split, category or option does not exist."""


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, truncated to MAX_SHOWN characters."""
    # repr quotes control characters
    text = repr(value)
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}… ({len(text)} characters)"
