"""One preparation by several jobs: each checks its share of the images, then packs its share of the shards.

What a job found out about its images it leaves in `<data>/.<name>.checked`; the shards that it packs are where
`vdsr.shards.write` looks for what an earlier run finished. So the last step, which writes the index, neither decodes
nor packs anything.
"""

import json
from dataclasses import asdict
from pathlib import Path

from data_prep.sources import Candidate, Facts, describe_all, path_key
from vdsr.errors import InputError
from vdsr.shards import Sample


def check(files: list[tuple[str, Candidate]], folder: Path, part: int, parts: int) -> None:
    """Decode every `parts`-th of the (set, file) pairs and note their facts, or why they have none, in `folder`."""
    note = folder / f"{part}.json"
    note.unlink(missing_ok=True)  # of an attempt before this one
    found: dict[str, dict[str, object] | str] = {}
    mine = files[part::parts]
    for set_name in dict.fromkeys(name for name, _ in mine):
        candidates = [candidate for name, candidate in mine if name == set_name]
        for candidate, sample in zip(candidates, describe_all(set_name, candidates, {}), strict=True):
            fact = asdict(sample) if isinstance(sample, Sample) else str(sample)
            found[path_key(set_name, str(candidate.path))] = fact
    folder.mkdir(parents=True, exist_ok=True)
    temporary = note.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    temporary.replace(note)


def checked(folder: Path, parts: int) -> Facts:
    """What the jobs noted; what is missing will be found out again."""
    facts: dict[str, Sample | InputError] = {}
    for part in range(parts):
        note = folder / f"{part}.json"
        if note.exists():
            for key, fact in json.loads(note.read_text()).items():
                facts[key] = InputError(fact) if isinstance(fact, str) else Sample(**fact)
    return facts
