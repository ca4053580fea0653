"""Train one network, or the sweep that an experiment names: `python src/train.py --help`."""

from omegaconf import DictConfig

from vdsr.cli import command
from vdsr.sweep import record_failure


@command("train", point_failed=record_failure)
def main(cfg: DictConfig) -> float:
    from vdsr.experiment import run  # torch and Lightning only once there is something to train

    return run(cfg)


if __name__ == "__main__":
    main()
