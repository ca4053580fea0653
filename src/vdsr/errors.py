"""The one exception that means: the user can mend this."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names the thing and the remedy. Commands print it and exit
    with status 1; any other exception is a bug of ours and keeps its traceback.
    """


@contextlib.contextmanager
def about(name: object) -> Iterator[None]:
    """Put the name of the thing before what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
