"""Public archives: downloaded with their checksum, read without ever being unpacked to disk."""

import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pooch
import requests

from vdsr.errors import InputError

MAX_MEMBER_BYTES = 64 << 20
MAX_ARCHIVE_BYTES = 2 << 30  # of the members kept
TIMEOUT_SECONDS = 30
# What the readers raise on archives that are damaged, encrypted or of an unknown compression.
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Archive:
    """A zip or tar at a public address; `checksum` as `sha256:…` or `md5:…` where one is published."""

    url: str
    checksum: str | None = None

    @property
    def host(self) -> str:
        """Where it is, for messages."""
        return urlsplit(self.url).netloc


def download(archive: Archive, folder: Path) -> Path:
    """The archive's path in `folder`, fetched if it is not there yet.

    Raises InputError when the address is dead or the file has another checksum.
    """
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT_SECONDS)
    try:
        return Path(pooch.retrieve(archive.url, archive.checksum, path=folder, downloader=downloader))
    except requests.HTTPError as error:
        raise InputError(" ".join(str(error).split())) from error  # "404 Client Error: … for url: …"
    except requests.RequestException as error:
        raise InputError(f"{archive.host} cannot be reached ({type(error).__name__})") from error
    except ValueError as error:
        raise InputError(f"{archive.url} has another checksum than published") from error


def members(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Name and bytes of the plain files in a zip or tar whose path is `wanted`; nothing is written.

    Raises InputError when the archive is damaged or its wanted files are absurdly large.
    """
    total = 0
    try:
        for name, size, read in _zip(path) if zipfile.is_zipfile(path) else _tar(path):
            if not wanted(PurePosixPath(name)) or size > MAX_MEMBER_BYTES:
                continue
            total += size
            if total > MAX_ARCHIVE_BYTES:
                raise InputError(f"{path} holds more than {MAX_ARCHIVE_BYTES >> 30} GiB of images; delete it")
            yield PurePosixPath(name), read()
    except UNREADABLE as error:
        kind = type(error).__name__
        raise InputError(f"{path} is not a whole zip or tar archive ({kind}); delete it") from error


Member = tuple[str, int, Callable[[], bytes]]


def _zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield info.filename, info.file_size, partial(archive.read, info)


def _tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isreg() and not info.issparse():
                yield info.name, info.size, partial(_read, archive, info)


def _read(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(info)
    return stream.read() if stream else b""
