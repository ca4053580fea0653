"""Check a prepared folder and name what is damaged.

python data_prep/verify.py path=data/train291
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from data_prep.output import say
from vdsr.cli import command
from vdsr.shards import ShardSet


@command("verify")
def main(cfg: DictConfig) -> None:
    """Run the command."""
    faults = run(cfg)
    if faults:
        sys.exit(1)


def run(cfg: DictConfig) -> list[str]:
    """Check the folder `cfg.path`: print OK or each fault on a line; returns the faults."""
    prepared = ShardSet.open(Path(cfg.path))
    faults = prepared.faults()
    for fault in faults:
        say(f"{prepared.root}: {fault}")
    if not faults:
        say(f"OK {prepared.root}: {prepared.count} images in {prepared.size_in_words()}")
    return faults


if __name__ == "__main__":
    main()
