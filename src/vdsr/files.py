"""Files that are there whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vdsr.errors import InputError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the context ends well, removed when it does not.

    Raises InputError when there is no space, or a file where a folder should be.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{path}: {os.strerror(error.errno)}; free space or name another folder") from None
        if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            raise InputError(f"{path}: cannot be written ({error.strerror}: {error.filename}); name another") from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
