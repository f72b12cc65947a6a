"""The exception of unusable input, which the command line turns into one line on stderr and exit code 2."""

LONGEST = 200  # characters of a value in a message


class InputError(ValueError):
    """Unusable input of the user: the message says what, where and the cure; the command line exits with 2."""


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, cut to LONGEST characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


class UnavailableError(InputError):
    """What was asked for is not there: no such file, folder, split, category or option."""
