"""Prepare a data set: fetch or find its images, verify each, write shards with an index.

    python data_prep/prepare.py dataset=train291 source=DIR

`--help` shows the rest.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from data_prep import shares
from data_prep.fetch import Archive
from data_prep.output import progress, say
from data_prep.sources import (
    Candidate,
    Facts,
    Image,
    Part,
    complete,
    embedded,
    fetched,
    files_below,
    local,
    local_files,
    own_images,
)
from vdsr.cli import command
from vdsr.errors import InputError
from vdsr.shards import INDEX, DamagedError, Sample, ShardSet, slug, with_unique_keys, write, write_share

SAMPLE = Path(__file__).parents[1] / "conf" / "dataset" / "sample.yaml"


@dataclass(frozen=True)
class Request:
    """What one prepared folder shall hold."""

    name: str
    origin: str
    licence: str
    collect: Callable[[Facts], list[Image]]
    files: Callable[[], list[tuple[str, Candidate]]] | None = None  # (set, file): what jobs can share among them
    done: Callable[[ShardSet], bool] = lambda prepared: False  # without looking at the source


@command("prepare")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    if cfg.stage is not None:
        run_share(cfg)
    elif cfg.parts != 1:
        raise InputError(
            f"parts={cfg.parts} shares the work among jobs: give -m too, and hydra/launcher=slurm for an array"
        )
    else:
        run(cfg)


def run(cfg: DictConfig) -> None:
    """Prepare what the composed config `conf/prepare.yaml` asks for."""
    for request in requests(cfg):
        prepare(request, Path(cfg.paths.data), cfg.overwrite)


def run_share(cfg: DictConfig) -> None:
    """Do one job's share: in the stage `check` of the images, in the stage `pack` of the shards."""
    for request in requests(cfg):
        out = Path(cfg.paths.data, request.name)
        existing = _look(out, cfg.overwrite)
        if cfg.stage == "check":
            shares.check(files_of(request), notes_of(out), cfg.part, cfg.parts)
            continue
        images = request.collect(shares.checked(notes_of(out), cfg.parts))
        samples = with_unique_keys(sample for sample, _ in images)
        if not (existing and existing.samples == tuple(samples)):
            write_share(out, samples, _reader(samples, images), cfg.part, cfg.parts)


def files_of(request: Request) -> list[tuple[str, Candidate]]:
    """What jobs can share; InputError where that is nothing."""
    if request.files is None:
        raise InputError("jobs can share the work on local images only: give source=DIR, which every job sees")
    return request.files()


def ensure_sample(data_dir: Path) -> None:
    """Prepare the embedded photographs, `sample` and `sample_val` in `data_dir`, unless they are there."""
    for request in sample_requests(cast(DictConfig, OmegaConf.load(SAMPLE))):
        try:
            if request.done(ShardSet.open(data_dir / request.name)):
                continue
        except InputError:
            pass  # none yet, or damaged; prepare says which
        prepare(request, data_dir)


def requests(cfg: DictConfig) -> list[Request]:
    """The folders that a config asks for: two for the embedded photographs, else one."""
    dataset = cfg.dataset
    if "train" in dataset:
        return sample_requests(dataset)
    source = None if cfg.source is None else _existing_folder(Path(cfg.source))
    name = cfg.name or dataset.name
    if "parts" not in dataset:
        if source is None:
            raise InputError("dataset=folder needs source=DIR, the folder with your images")
        name = name or slug(source.resolve().name)
        return [
            Request(name, dataset.origin, dataset.licence,
                    lambda facts: own_images(source, name, cfg.min_size, facts),
                    lambda: [(name, file) for file in files_below(source)])
        ]  # fmt: skip
    parts = [_part(key, part) for key, part in dataset.parts.items()]
    downloads = Path(cfg.paths.data, "downloads")

    def collect(facts: Facts) -> list[Image]:
        if source is None:
            return [image for part in parts for image in fetched(part, downloads, facts)]
        return [image for part in parts for image in local(part, source, len(parts) == 1, facts)]

    origin = "; ".join(part.origin for part in parts)
    licence = "; ".join(dict.fromkeys(part.licence for part in parts))
    if source is None:
        return [Request(name, origin, licence, collect, done=lambda prepared: complete(parts, prepared))]

    def files() -> list[tuple[str, Candidate]]:
        return [(part.name, file) for part in parts for file in local_files(part, source, len(parts) == 1)[1]]

    return [Request(name, origin, licence, collect, files)]


def sample_requests(dataset: DictConfig) -> list[Request]:
    """scikit-image's embedded photographs: `sample` to train on, `sample_val` held out."""
    return [
        _embedded("sample", dataset.origin, dict(dataset.train)),
        _embedded("sample_val", dataset.origin, dict(dataset.val)),
    ]


def prepare(request: Request, data_dir: Path, overwrite: bool = False, checked: Facts | None = None) -> ShardSet:
    """Make `data_dir/<name>` hold what `request` asks for, and say what was done.

    checked: what is known of its files already.

    Raises InputError when the folder holds something else and `overwrite` is false.
    """
    name, out = request.name, data_dir / request.name
    if slug(name) != name:
        raise InputError(f"name={name} must consist of letters, digits, '_' and '-'")
    existing = _look(out, overwrite)
    faults = existing.faults(decode_images=False) if existing else []
    if existing and not faults and request.done(existing):
        return _in_place(existing)
    facts = {sample.sha256_file: sample for sample in existing.samples} if existing else {}
    images = request.collect({**facts, **(checked or {})})
    samples = with_unique_keys(sample for sample, _ in images)
    if existing and existing.samples == tuple(samples):
        if not faults:
            return _in_place(existing)
        for fault in faults:
            say(f"{out} is damaged: {fault}")
        say(f"{out} is prepared anew")
    elif existing and not overwrite:
        raise InputError(f"{out} holds something else; give overwrite=true or another name=")
    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f".{name}.lock"):  # two runs may want the same folder at the same time
        if meanwhile := _made_meanwhile(out, samples):
            return _in_place(meanwhile)
        prepared = _write(out, samples, images, request)
    say(f"wrote {_summary(prepared)}")
    return prepared


def _write(out: Path, samples: list[Sample], images: list[Image], request: Request) -> ShardSet:
    with progress(f"{request.name}: writing", len(samples)) as advance:
        return write(
            out,
            samples,
            _reader(samples, images),
            licence=request.licence,
            source=request.origin,
            progress=advance,
        )


def _reader(samples: list[Sample], images: list[Image]) -> Callable[[Sample], bytes]:
    candidates: dict[str, Candidate] = {s.key: c for s, (_, c) in zip(samples, images, strict=True)}
    return lambda sample: candidates[sample.key].read()


def notes_of(out: Path) -> Path:
    """Where the jobs that prepare `out` note what they found."""
    return out.with_name(f".{out.name}.checked")


def _made_meanwhile(out: Path, samples: list[Sample]) -> ShardSet | None:
    try:
        found = ShardSet.open(out)
    except InputError:
        return None
    return found if found.samples == tuple(samples) and not found.faults(decode_images=False) else None


def _look(out: Path, overwrite: bool) -> ShardSet | None:
    """What is at `out`: a prepared folder, or nothing to be missed; anything else raises InputError."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out} is a file; give another name= or paths.data=")
    foreign = sorted(p.name for p in out.iterdir() if p.name != INDEX and (p.suffix != ".tar" or p.is_dir()))
    if foreign:
        raise InputError(f"{out} holds other files ({foreign[0]}); move them away or give another name=")
    try:
        return ShardSet.open(out)
    except DamagedError as error:
        say(f"{out} is damaged: {error.fault}; it is prepared anew")
        return None
    except InputError as error:
        if overwrite or not any(out.iterdir()):
            return None
        if not (out / INDEX).exists():
            raise InputError(f"{out} has tars without {INDEX}; give overwrite=true or another name=") from error
        raise


def _embedded(name: str, origin: str, licences: dict[str, str]) -> Request:
    def done(prepared: ShardSet) -> bool:
        return [sample.file for sample in prepared.samples] == list(licences)

    licence = "; ".join(f"{file}: {text}" for file, text in licences.items())
    return Request(name, origin, licence, lambda facts: embedded(name, list(licences), facts), done=done)


def _part(name: str, part: DictConfig) -> Part:
    archives = [Archive(archive.url, archive.checksum) for archive in part.archives]
    return Part(name, part.count, list(part.aliases), part.origin, part.licence, archives)


def _existing_folder(source: Path) -> Path:
    if not source.is_dir():
        fault = "is a file" if source.exists() else "does not exist"
        raise InputError(f"source={source} {fault}; give a folder with images")
    return source


def _in_place(prepared: ShardSet) -> ShardSet:
    say(f"in place: {_summary(prepared)}")
    return prepared


def _summary(prepared: ShardSet) -> str:
    counts = Counter(sample.set for sample in prepared.samples)
    sets = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{prepared.root}: {prepared.count} images ({sets}) in {prepared.size_in_words()}"


if __name__ == "__main__":
    main()
