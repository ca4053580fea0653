"""The embedded photographs: shards on first use, so that the first run needs nothing else."""

from collections.abc import Iterable
from pathlib import Path

SETS = ("sample", "sample_val")


def ensure_sample(root: Path, folders: Iterable[Path]) -> None:
    """Prepare the embedded photographs below `root` when one of `folders` is theirs and not there yet."""
    if any(folder.parent == root and folder.name in SETS for folder in folders):
        from data_prep import prepare  # the one place where training prepares anything

        prepare.ensure_sample(root)
