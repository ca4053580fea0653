"""Train one network, or the sweep that an experiment names: `python src/train.py --help`."""

from vdsr import signals

signals.catch()  # before the imports that take their time

import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

from omegaconf import DictConfig  # noqa: E402

from vdsr.cli import command  # noqa: E402
from vdsr.sweep import record_failure  # noqa: E402


@command("train", point_failed=record_failure)
def main(cfg: DictConfig) -> float:
    from vdsr.experiment import run  # torch and Lightning only once there is something to train

    return run(cfg)


if __name__ == "__main__":
    try:
        main()
    except signals.Preempted as preempted:
        # Python takes its time to end, on one rank more than on another, and srun kills those that are late
        logging.shutdown()
        sys.stdout.flush()
        status = int(preempted.code or 0)
        os._exit(0 if signals.stopped_by_sweep(status) else status)
