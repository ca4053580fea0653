"""Shards from a local folder or over HTTP, checked against their SHA-256 before anything in them is used."""

import functools
import hashlib
import itertools
import logging
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import urlsplit

import requests

from vdsr.errors import InputError
from vdsr.shards import INDEX, DamagedError, Shard, ShardSet, unpack

log = logging.getLogger(__name__)

Result = TypeVar("Result")

CHUNK = 1 << 20  # bytes held at a time
LARGEST_INDEX = 1 << 30
FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0  # seconds before the first retry and at most; doubled in between
PASSING = {408, 425, 429}  # of the 4xx answers; another one is final


class FaultyError(Exception):
    """What arrived is not what was asked for; asking again may help."""


@dataclass
class Source:
    """Where a prepared folder's shards come from: a local folder or the http(s) address of one.

    cache: a node-local folder that keeps what is fetched, named by its SHA-256; without it a fetched shard is
    a temporary file for as long as it is read. retries: how often an answer that is late (`timeout` seconds
    without a byte), broken off, short, changed or an error is asked for again, after waits that double.
    retried: how often this process did.
    Raises InputError, naming shard, place and remedy, for what is missing for good.
    """

    place: str
    cache: Path | None = None
    retries: int = 10
    timeout: float = 30.0
    retried: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.remote = self.place.startswith(("http://", "https://"))
        if "://" in self.place and not self.remote:
            raise InputError(f"data.train={self.place}: give a prepared folder, or its http:// or https:// address")

    @property
    def shown(self) -> str:
        """The place, without the password or the token that an address may hold."""
        if not self.remote:
            return self.place
        parts = urlsplit(self.place)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", path=parts.path.rstrip("/")).geturl()

    def index(self) -> ShardSet:
        """The index; that of an address is fetched anew each time."""
        if not self.remote:
            return ShardSet.open(Path(self.place))
        with tempfile.TemporaryDirectory() as folder:

            def attempt() -> ShardSet:
                with Path(folder, INDEX).open("wb") as file:
                    self._copy(INDEX, file, LARGEST_INDEX)
                try:
                    return ShardSet.open(Path(folder))
                except DamagedError as error:
                    raise FaultyError(error.fault) from None

            try:
                return self._insist(INDEX, attempt)
            except InputError as error:
                raise InputError(str(error).replace(folder, self.shown)) from None

    def check(self, shards: ShardSet) -> None:
        """Raises DamagedError when a local folder lacks a shard or has one of another size; reads none."""
        for shard in [] if self.remote else shards.shards:
            path = Path(self.place, shard.file)
            if not path.is_file():
                raise DamagedError(Path(self.place), f"{shard.file} is missing")
            if path.stat().st_size != shard.bytes:
                raise DamagedError(Path(self.place), f"{shard.file} has not the size that {INDEX} says")

    def open(self, shard: Shard) -> IO[bytes]:
        """A shard, whole and verified, as a file to be closed after use."""
        if self.cache is None and not self.remote:
            file = self._local(shard.file)
            if _sha256(file) != shard.sha256:
                file.close()
                raise DamagedError(Path(self.place), f"{shard.file} was changed: its SHA-256 differs")
            return file
        if self.cache is None:
            return self._fetch(shard, tempfile.TemporaryFile())
        kept = self.cache / f"{shard.sha256}.tar"
        if kept.exists():
            file = kept.open("rb")
            if _sha256(file) == shard.sha256:
                return file
            file.close()
            log.warning("shard %s: damaged in the cache %s, fetched again", shard.file, self.cache)
        self.cache.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(".partial", dir=self.cache)
        try:
            file = self._fetch(shard, os.fdopen(handle, "w+b"))
            os.replace(partial, kept)  # whole or not at all, whoever else fetches it meanwhile
        except BaseException:
            os.unlink(partial)
            raise
        return file

    def _fetch(self, shard: Shard, file: IO[bytes]) -> IO[bytes]:
        """Fill `file`; it is closed when that fails."""

        def attempt() -> None:
            self._copy(shard.file, file, shard.bytes)
            if file.tell() < shard.bytes:
                raise FaultyError(f"{file.tell()} of {shard.bytes} bytes")
            if _sha256(file) != shard.sha256:
                raise FaultyError(f"its SHA-256 is not the one that {INDEX} says")

        try:
            self._insist(shard.file, attempt)
            file.flush()
        except BaseException:
            file.close()
            raise
        return file

    def _insist(self, name: str, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns once it succeeds; the retries are counted and logged."""
        for tries in itertools.count():
            try:
                result = attempt()
            except (requests.RequestException, FaultyError) as error:
                if not self.remote:
                    raise DamagedError(Path(self.place), f"{name}: {_why(error)}") from None
                if tries == self.retries:
                    raise InputError(
                        f"{self.shown}: {name} could not be fetched in {tries + 1} attempts ({_why(error)}): check the "
                        "server and that the whole prepared folder is there, or raise data.stream.retries"
                    ) from None
                self.retried += 1
                # of its own chance: the seeded one belongs to the training
                time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**tries) * random.SystemRandom().uniform(0.5, 1.5))
            else:
                if tries:
                    log.warning("shard %s: %d %s", name, tries, "retry" if tries == 1 else "retries")
                return result
        raise AssertionError("unreachable")

    def _copy(self, name: str, file: IO[bytes], limit: int) -> None:
        file.seek(0)
        file.truncate()
        for chunk in self._download(name) if self.remote else self._read(name):
            file.write(chunk)
            if file.tell() > limit:
                raise FaultyError(f"more than the {limit} bytes expected")

    def _read(self, name: str) -> Iterator[bytes]:
        with self._local(name) as file:
            yield from iter(lambda: file.read(CHUNK), b"")

    def _local(self, name: str) -> IO[bytes]:
        try:
            return Path(self.place, name).open("rb")
        except FileNotFoundError:
            raise DamagedError(Path(self.place), f"{name} is missing") from None

    def _download(self, name: str) -> Iterator[bytes]:
        parts = urlsplit(self.place)
        address = parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()
        with _session(os.getpid()).get(address, stream=True, timeout=self.timeout) as reply:
            if 400 <= reply.status_code < 500 and reply.status_code not in PASSING:
                raise InputError(
                    f"{self.shown}: {name} is not to be had (HTTP {reply.status_code}): copy the whole prepared "
                    "folder there, or name another place as data.train"
                )
            reply.raise_for_status()
            yield from reply.iter_content(CHUNK)


def images_in(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """(key, image bytes) of a verified shard, one after the other. Raises InputError for another kind of tar."""
    try:
        yield from unpack(file)
    except (tarfile.TarError, ValueError) as error:
        raise InputError(f"{name} is not a tar of plain files ({_why(error)}): prepare it again") from None


@functools.lru_cache(maxsize=1)
def _session(process: int) -> requests.Session:
    """One a process: two must not read from the same connection."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # the bytes as they are
    return session


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    for chunk in iter(lambda: file.read(CHUNK), b""):
        digest.update(chunk)
    return digest.hexdigest()


def _why(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.RequestException):  # its text is a chain of objects' addresses
        return "the connection failed" if isinstance(error, requests.ConnectionError) else "the answer broke off"
    return " ".join(str(error).split())[:120]
