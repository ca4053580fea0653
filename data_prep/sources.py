"""Where images come from, and the check that they are the ones that were asked for."""

import csv
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from data_prep.fetch import Archive, download, members
from data_prep.output import progress, say
from vdsr.errors import InputError
from vdsr.shards import Sample, ShardSet, describe, sha256

CHECKSUMS = Path(__file__).with_name("checksums.tsv")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
LOW_RESOLUTION = re.compile(r"lr([_-].*)?", re.IGNORECASE)  # benchmark archives carry degraded copies too

# What need not be decoded again: by SHA-256 of the file, or by `path_key` what was found out a moment ago.
Facts = Mapping[str, Sample | InputError]


@dataclass(frozen=True)
class Candidate:
    """A file that may be a wanted image: its path as messages name it, and how to get its bytes."""

    path: PurePosixPath
    read: Callable[[], bytes]


Image = tuple[Sample, Candidate]


@dataclass(frozen=True)
class Part:
    """One published set of images. Its checksums, where known, are in checksums.tsv under its name."""

    name: str
    count: int
    aliases: Sequence[str]
    origin: str
    licence: str
    archives: Sequence[Archive]

    @property
    def known(self) -> dict[str, dict[str, str]]:
        """file → {mode, sha256_file, sha256_rgb}; empty where none were ever published (Urban100)."""
        return _checksums().get(self.name, {})

    def folder_names(self) -> set[str]:
        """Its folder's usual names, in lower case."""
        return {self.name.lower(), *(alias.lower() for alias in self.aliases)}


def local(part: Part, source: Path, alone: bool, facts: Facts) -> list[Image]:
    """The images of `part` from its subfolder of `source`, or from `source` itself if it is `alone`."""
    root, candidates = local_files(part, source, alone)
    return match(part, candidates, facts, f"in {root}")


def local_files(part: Part, source: Path, alone: bool) -> tuple[Path, list[Candidate]]:
    """The folder in which `part` lies, and what may be its images there."""
    names = part.folder_names()
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name.lower() in names]
    if not folders and not alone:
        raise InputError(f"{source} has no folder {part.name} (or {', '.join(part.aliases)})")
    root = folders[0] if folders else source
    return root, [c for c in files_below(root) if _plausible(c.path)]


def fetched(part: Part, downloads: Path, facts: Facts) -> list[Image]:
    """The images of `part` from the first of its public addresses that has them all."""
    stems = {PurePosixPath(file).stem.lower() for file in part.known}

    def wanted(path: PurePosixPath) -> bool:
        inside = any(folder.lower() in part.folder_names() for folder in path.parts[:-1])
        return _plausible(path) and (inside or path.stem.lower() in stems)

    reasons = []
    for archive in part.archives:
        say(f"{part.name}: fetching {archive.url}")
        try:
            found = members(download(archive, downloads), wanted)
            candidates = [Candidate(path, lambda data=data: data) for path, data in found]  # type: ignore[misc]
            return match(part, candidates, facts, f"at {archive.host}")
        except InputError as error:
            reasons.append(str(error))
    tried = "; ".join(reasons)
    raise InputError(f"{part.name} could not be fetched: {tried}; give local copies with source=DIR")


def match(part: Part, candidates: Sequence[Candidate], facts: Facts, where: str) -> list[Image]:
    """The candidates that are the images of `part`, one for each, in the order of their names.

    An image is known by its pixels and mode, whatever the file's name and format. Raises InputError that
    names those missing or different.
    """
    described = describe_all(part.name, candidates, facts)
    usable = [(s, c) for s, c in zip(described, candidates, strict=True) if isinstance(s, Sample)]
    if not part.known:
        if len(usable) != part.count:
            raise InputError(f"{part.name}: {len(usable)} images {where}, expected {part.count}")
        return sorted(usable, key=lambda image: natural(image[0].file))
    by_file = {s.sha256_file: (s, c) for s, c in usable}
    by_pixels = {(s.mode, s.sha256_pixels): (s, c) for s, c in usable}
    by_name = {(c.path.stem.lower(), s.mode, s.sha256_pixels): (s, c) for s, c in usable}
    stems = {candidate.path.stem.lower() for candidate in candidates}
    chosen, faults = [], []
    for file, known in sorted(part.known.items(), key=lambda item: natural(item[0])):
        stem, pixels = PurePosixPath(file).stem.lower(), (known["mode"], known["sha256_rgb"])
        hit = by_file.get(known["sha256_file"]) or by_name.get((stem, *pixels)) or by_pixels.get(pixels)
        if hit and pixels == (hit[0].mode, hit[0].sha256_pixels):
            chosen.append((replace(hit[0], file=file), hit[1]))
        else:
            faults.append(f"{file} is {'not the published image' if stem in stems else 'missing'}")
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"{part.name} {where}: {', '.join(faults[:3])}{more}")
    return chosen


def complete(parts: Iterable[Part], prepared: ShardSet) -> bool:
    """Whether the folder holds exactly the images of `parts`, judged by its index."""
    for part in parts:
        samples = [sample for sample in prepared.samples if sample.set == part.name]
        pixels = {sample.file: (sample.mode, sample.sha256_pixels) for sample in samples}
        known = {file: (row["mode"], row["sha256_rgb"]) for file, row in part.known.items()}
        if len(samples) != part.count or (known and pixels != known):
            return False
    return {sample.set for sample in prepared.samples} == {part.name for part in parts}


def own_images(source: Path, set_name: str, min_size: int, facts: Facts) -> list[Image]:
    """Every usable image below `source`; prints what is left out and why."""
    candidates = files_below(source)
    images, left_out = [], 0
    for sample, candidate in zip(describe_all(set_name, candidates, facts), candidates, strict=True):
        if isinstance(sample, Sample) and min(sample.width, sample.height) >= min_size:
            images.append((sample, candidate))
            continue
        left_out += 1
        if isinstance(sample, Sample):
            size = f"{sample.width}×{sample.height} is smaller than {min_size}×{min_size} (min_size)"
            say(f"left out {candidate.path}: {size}")
        else:
            say(f"left out {str(sample).removeprefix(f'{set_name}/')}")
    if left_out:
        say(f"left out {left_out} of {len(candidates)} files")
    if not images:
        raise InputError(f"{source} has no usable image (PNG, JPEG, WebP, TIFF or BMP); give another folder")
    return images


def embedded(set_name: str, files: Sequence[str], facts: Facts) -> list[Image]:
    """The named photographs out of scikit-image's wheel, found without importing it, which takes its time."""
    spec = importlib.util.find_spec("skimage")
    folders = spec.submodule_search_locations if spec else None
    data = Path(folders[0] if folders else "skimage", "data")
    for file in files:
        if not (data / file).is_file():
            raise InputError(f"{file} is not in scikit-image's {data}; install the pinned scikit-image")
    candidates = [Candidate(PurePosixPath(file), (data / file).read_bytes) for file in files]
    images = []
    for sample, candidate in zip(describe_all(set_name, candidates, facts), candidates, strict=True):
        if isinstance(sample, InputError):
            raise sample
        images.append((sample, candidate))
    return images


def files_below(root: Path) -> list[Candidate]:
    """All files below `root`, in natural order of their path; links to folders are not followed."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            shown = os.fsencode(path.relative_to(root)).decode("utf-8", "replace")
            found.append(Candidate(PurePosixPath(shown), path.read_bytes))
    return sorted(found, key=lambda candidate: natural(str(candidate.path)))


def describe_all(set_name: str, candidates: Sequence[Candidate], facts: Facts) -> list[Sample | InputError]:
    """The facts of each candidate, or why it has none; decoded in parallel."""

    def describe_one(candidate: Candidate) -> Sample | InputError:
        file = str(candidate.path)
        if found := facts.get(path_key(set_name, file)):
            return found
        data = candidate.read()
        if isinstance(known := facts.get(sha256(data)), Sample):
            return replace(known, key="", set=set_name, file=file)
        try:
            return describe(data, set_name, file)
        except InputError as error:
            return error

    described = []
    with ThreadPoolExecutor() as pool, progress(f"{set_name}: checking", len(candidates)) as advance:
        for result in pool.map(describe_one, candidates):
            described.append(result)
            advance(1)
    return described


def path_key(set_name: str, file: str) -> str:
    """The key of a file of a set among `Facts`, never that of a checksum."""
    return f"{set_name}/{file}"


def natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts t2 before t10, the same on every machine."""
    return [(int(n or 0), word) for word, n in re.findall(r"(\D*)(\d*)", text)], text


def _plausible(path: PurePosixPath) -> bool:
    degraded = any(LOW_RESOLUTION.fullmatch(folder) for folder in path.parts[:-1])
    return path.suffix.lower() in SUFFIXES and not degraded


@cache
def _checksums() -> dict[str, dict[str, dict[str, str]]]:
    known: dict[str, dict[str, dict[str, str]]] = {}
    with CHECKSUMS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            known.setdefault(row["set"], {})[row["file"]] = row
    return known
