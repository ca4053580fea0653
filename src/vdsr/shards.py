"""WebDataset shards of high-resolution images, with an index that names, counts and checksums them.

A prepared folder holds `<name>-00000.tar`, … and `index.json`. In the tars each sample is the source
file's bytes as they are, under a key without dots, plus a small JSON. Nothing in the folder depends on
when, where or by whom it was made: the same images give the same bytes.

`webdataset` is imported where it is used: it imports torch (a second), which looking for a finished
folder does not need.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from vdsr.errors import InputError
from vdsr.images import EXTENSIONS, decode, image_format, pixel_checksum

FORMAT = 1
IMAGES_PER_SHARD = 32
LONGEST_KEY = 80  # a tar header has room for 100 characters
MAX_SHARD_BYTES = 8 << 30
INDEX = "index.json"
CATALOGUE = ("sample", "train91", "train291", "set5", "set14", "b100", "urban100")


Record = TypeVar("Record", "Sample", "Shard")


class DamagedError(InputError):
    """A prepared folder is not as its index says; preparing it again mends it."""

    def __init__(self, root: Path, fault: str) -> None:
        super().__init__(f"{root}: {fault}; prepare it again with `{_prepare_command(root)}`")
        self.fault = fault


@dataclass(frozen=True)
class Sample:
    """One image: where it came from, its decoded size in pixels, mode (`L` or `RGB`) and SHA-256 sums."""

    key: str
    set: str
    file: str
    width: int
    height: int
    mode: str
    sha256_file: str
    sha256_pixels: str

    @property
    def name(self) -> str:
        """The file's name without folder and extension, as tables print it."""
        return PurePosixPath(self.file).stem


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, number of images, size in bytes and SHA-256."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardSet:
    """One prepared folder, as its index describes it.

    `checksum` names the data: a function of the shards' checksums alone.
    """

    root: Path
    name: str
    count: int
    checksum: str
    licence: str
    source: str
    samples: tuple[Sample, ...]
    shards: tuple[Shard, ...]

    @property
    def total_bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.bytes for shard in self.shards)

    def size_in_words(self) -> str:
        """Shards, megabytes and checksum, for people."""
        shards = f"{len(self.shards)} shard{'s' if len(self.shards) != 1 else ''}"
        return f"{shards}, {self.total_bytes / 1e6:.1f} MB, checksum {self.checksum[:16]}"

    @classmethod
    def open(cls, root: Path) -> "ShardSet":
        """Read the index of a prepared folder; no shard is read.

        Raises InputError when there is none yet or a newer program wrote it, DamagedError when it
        contradicts itself.
        """
        root = Path(root)
        try:
            index = json.loads((root / INDEX).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"no shards in {root}; make them with `{_prepare_command(root)}`") from None
        except ValueError:
            raise DamagedError(root, f"{INDEX} is not JSON") from None
        try:
            if index["format"] > FORMAT:
                raise InputError(
                    f"{root}: index has format {index['format']}, newer than {FORMAT}; update this program "
                    "or prepare the folder again with overwrite=true"
                )
            return cls._parse(root, index)
        except (KeyError, TypeError, AttributeError) as error:
            raise DamagedError(root, f"{INDEX} lacks or mistypes something ({error})") from None

    @classmethod
    def _parse(cls, root: Path, index: dict[str, Any]) -> "ShardSet":
        samples = tuple(_typed(Sample(**sample)) for sample in index["samples"])
        shards = tuple(_typed(Shard(**shard)) for shard in index["shards"])
        found = cls(root, index["name"], index["count"], index["checksum"], index["licence"], index["source"],
                    samples, shards)  # fmt: skip
        for shard in shards:  # a name must not lead out of the folder
            if not re.fullmatch(r"[\w-]+\.tar", shard.file) or not 0 <= shard.bytes <= MAX_SHARD_BYTES:
                fault = f"{INDEX} has an impossible shard {shard.file!r} of {shard.bytes} bytes"
                raise DamagedError(root, fault)
        if not found.count == len(samples) == sum(shard.count for shard in shards):
            raise DamagedError(root, f"{INDEX} counts its images differently in different places")
        if found.checksum != _set_checksum(shards):
            raise DamagedError(root, f"{INDEX} was changed: its checksum is not that of its shards")
        return found

    def read(self) -> Iterator[tuple[Sample, bytes]]:
        """Each sample with its image file's bytes, in the order of the index.

        A shard is checked against its SHA-256 before anything in it is used. Raises DamagedError, which
        names the shard, when one is missing, changed or not in the index.
        """
        for fault in self._strangers():
            raise DamagedError(self.root, fault)
        for shard, samples in self._contents():
            data = self._load(shard)
            if fault := _changed(shard, data):
                raise DamagedError(self.root, fault)
            yield from zip(samples, self._images(shard, samples, data), strict=True)

    def faults(self, decode_images: bool = True) -> list[str]:
        """Everything wrong with the folder, one line each; empty when all is well.

        With `decode_images=False` the shards' names, sizes and SHA-256 only, which is quick.
        """
        found = self._strangers()
        for shard, samples in self._contents():
            found += self._shard_faults(shard, samples, decode_images)
        return found

    def _contents(self) -> Iterator[tuple[Shard, tuple[Sample, ...]]]:
        start = 0
        for shard in self.shards:
            yield shard, self.samples[start : start + shard.count]
            start += shard.count

    def _strangers(self) -> list[str]:
        known = {shard.file for shard in self.shards}
        extra = sorted(path.name for path in self.root.glob("*.tar") if path.name not in known)
        return [f"{name} is not in {INDEX}" for name in extra]

    def _load(self, shard: Shard) -> bytes:
        path = self.root / shard.file
        if not path.is_file():
            raise DamagedError(self.root, f"{shard.file} is missing")
        size = path.stat().st_size
        if size != shard.bytes:
            word = "truncated" if size < shard.bytes else "too long"
            raise DamagedError(self.root, f"{shard.file} is {word}: {size} of {shard.bytes} bytes")
        return path.read_bytes()

    def _images(self, shard: Shard, samples: Sequence[Sample], data: bytes) -> list[bytes]:
        try:
            images = dict(unpack(io.BytesIO(data)))
        except (tarfile.TarError, ValueError) as error:
            raise DamagedError(self.root, f"{shard.file} is not a tar of plain files ({error})") from None
        if list(images) != [sample.key for sample in samples]:
            raise DamagedError(self.root, f"{shard.file} holds other images than {INDEX} says")
        return list(images.values())

    def _shard_faults(self, shard: Shard, samples: Sequence[Sample], decode_images: bool) -> list[str]:
        try:
            data = self._load(shard)
            if fault := _changed(shard, data):
                damaged = _damaged_samples(data, samples)
                return [f"{fault}; damaged: {', '.join(damaged) or 'none of its images'}"]
            if not decode_images:
                return []
            images = self._images(shard, samples, data)
        except DamagedError as error:
            return [error.fault]
        with ThreadPoolExecutor() as pool:
            verdicts = pool.map(_pixel_fault, samples, images)
            return [f"{shard.file}: {verdict}" for verdict in verdicts if verdict]


def describe(data: bytes, set_name: str, file: str) -> Sample:
    """The facts of one image file, from decoding it; its key is not yet unique (see `with_unique_keys`).

    Raises InputError as `vdsr.images.decode` does.
    """
    pixels = decode(data, f"{set_name}/{file}")
    height, width = pixels.shape[:2]
    mode = "L" if pixels.ndim == 2 else "RGB"
    return Sample("", set_name, file, width, height, mode, sha256(data), pixel_checksum(pixels))


def with_unique_keys(samples: Iterable[Sample]) -> list[Sample]:
    """Give each sample the key `<set>-<name>`, only [A-Za-z0-9_-], with -2, -3, … where names coincide."""
    taken: set[str] = set()
    keyed = []
    for sample in samples:
        path = PurePosixPath(sample.file)
        key = slug(f"{sample.set}-{path.with_suffix('')}")[:LONGEST_KEY]
        candidates = itertools.chain([key], (f"{key}-{number}" for number in itertools.count(2)))
        unique = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(unique)
        keyed.append(dataclasses.replace(sample, key=unique))
    return keyed


def write(
    out: Path,
    samples: Sequence[Sample],
    read: Callable[[Sample], bytes],
    *,
    licence: str,
    source: str,
    progress: Callable[[int], object] = lambda count: None,
) -> ShardSet:
    """Write `samples` (with unique keys) as the prepared folder `out`, named after it.

    read: gives a sample's file; its SHA-256 is checked. progress: called with the number of images after
    each shard. All is written to `<out>.partial`, which takes the place of `out` at the end; shards that a
    killed run finished there are kept where their images are the same.
    """
    partial = _partial(out)
    shards = []
    for file, chunk in _chunks(out.name, samples):
        shards.append(_write_shard(partial / file, chunk, read))
        progress(len(chunk))
    index = {
        "format": FORMAT,
        "name": out.name,
        "count": len(samples),
        "bytes": sum(shard.bytes for shard in shards),
        "checksum": _set_checksum(shards),
        "licence": licence,
        "source": source,
        "shards": [asdict(shard) for shard in shards],
        "samples": [asdict(sample) for sample in samples],
    }
    _write_file(partial / INDEX, json.dumps(index, indent=1).encode())
    wanted = {INDEX} | {shard.file for shard in shards}
    for path in partial.iterdir():
        if path.name not in wanted:  # notes on finished shards, and shards of an earlier, other attempt
            path.unlink()
    _replace_folder(out, partial)
    return ShardSet.open(out)


def write_share(out: Path, samples: Sequence[Sample], read: Callable[[Sample], bytes], part: int, parts: int) -> None:
    """Write every `parts`-th of the shards that `write` would, from shard `part` on, to where it will find them."""
    partial = _partial(out)
    for file, chunk in list(_chunks(out.name, samples))[part::parts]:
        _write_shard(partial / file, chunk, read)


def slug(text: str) -> str:
    """`text` with everything outside [A-Za-z0-9_-] turned to a hyphen."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "image"


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _partial(out: Path) -> Path:
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    return partial


def _chunks(name: str, samples: Sequence[Sample]) -> Iterator[tuple[str, Sequence[Sample]]]:
    """Each shard's file and what goes into it."""
    for number, start in enumerate(range(0, len(samples), IMAGES_PER_SHARD)):
        yield f"{name}-{number:05d}.tar", samples[start : start + IMAGES_PER_SHARD]


def _write_shard(path: Path, samples: Sequence[Sample], read: Callable[[Sample], bytes]) -> Shard:
    note = path.with_suffix(".json")  # written after its shard: what a resumed run recognises it by
    asked = [asdict(sample) for sample in samples]
    try:
        finished = json.loads(note.read_bytes())
        shard = Shard(**finished["shard"])
        if finished["samples"] == asked and sha256(path.read_bytes()) == shard.sha256:
            return shard
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    data = _pack(samples, read)
    shard = Shard(path.name, len(samples), len(data), sha256(data))
    _write_file(path, data)
    _write_file(note, json.dumps({"shard": asdict(shard), "samples": asked}).encode())
    return shard


def _pack(samples: Sequence[Sample], read: Callable[[Sample], bytes]) -> bytes:
    from webdataset import TarWriter

    buffer = io.BytesIO()
    same_everywhere = {"user": "vdsr", "group": "vdsr", "mode": 0o444, "mtime": 0}
    with TarWriter(buffer, compress=False, encoder=False, **same_everywhere) as tar:
        for sample in samples:
            data = read(sample)
            if sha256(data) != sample.sha256_file:
                raise InputError(f"{sample.set}/{sample.file}: changed while it was being read; run again")
            facts = {"name": sample.name, **asdict(sample)}
            del facts["key"]
            extension = EXTENSIONS[str(image_format(data))]
            tar.write({"__key__": sample.key, extension: data, "json": json.dumps(facts).encode()})
    return buffer.getvalue()


def unpack(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """(key, image bytes) of every sample of a shard, one after the other.

    Raises tarfile.TarError or ValueError for anything but an uncompressed tar of plain files.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:  # uncompressed only: no bombs
        if any(not member.isreg() or member.issparse() for member in tar):
            raise tarfile.ReadError("something other than plain files is in it")
    file.seek(0)
    for sample in group_by_keys(tar_file_expander([{"url": "", "stream": file}])):
        images = [value for field, value in sample.items() if field in EXTENSIONS.values()]
        yield sample["__key__"], images[0] if images else b""


def _typed(record: Record) -> Record:
    """`record` itself if every field has its declared type, for what came out of JSON."""
    for field in dataclasses.fields(record):
        if type(getattr(record, field.name)) is not field.type:
            raise TypeError(f"{field.name} of {record.file!r}")
    return record


def _changed(shard: Shard, data: bytes) -> str:
    return "" if sha256(data) == shard.sha256 else f"{shard.file} was changed: its SHA-256 differs"


def _damaged_samples(data: bytes, samples: Sequence[Sample]) -> list[str]:
    images: dict[str, bytes] = {}
    with contextlib.suppress(Exception):  # a damaged tar fails in many ways; what was not read is damaged
        images.update(unpack(io.BytesIO(data)))
    return [f"{s.set}/{s.file}" for s in samples if sha256(images.get(s.key, b"")) != s.sha256_file]


def _pixel_fault(sample: Sample, data: bytes) -> str:
    try:
        found = describe(data, sample.set, sample.file)
    except InputError as error:
        return str(error)
    if dataclasses.replace(found, key=sample.key) != sample:
        return f"{sample.set}/{sample.file}: decodes to other pixels than {INDEX} says"
    return ""


def _set_checksum(shards: Iterable[Shard]) -> str:
    return sha256("\n".join(shard.sha256 for shard in shards).encode())


def _write_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _replace_folder(out: Path, new: Path) -> None:
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _prepare_command(root: Path) -> str:
    name = root.name.removesuffix("_val") if root.name == "sample_val" else root.name
    request = f"dataset={name}" if name in CATALOGUE else f"dataset=folder source=DIR name={name}"
    where = "" if root.parent == Path("data") else f" paths.data={root.parent}"
    return f"python data_prep/prepare.py {request}{where}"
