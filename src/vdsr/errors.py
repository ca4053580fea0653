"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names the thing and the remedy. Commands print it and exit
    with status 1; any other exception is a bug of ours and keeps its traceback.
    """
