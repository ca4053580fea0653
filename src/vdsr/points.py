"""One point of a sweep, for schedulers that give each point a process of its own.

With `VDSR_POINT=i` in its environment a sweep runs its point i alone, counted from 0, in the folder that it has in the
whole sweep, and renews the sweep's table; with `VDSR_POINT=list` it prints its points, a line each, and ends.
"""

import math
import os
import sys
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from vdsr.cli import explain

VARIABLE = "VDSR_POINT"


def one_point() -> bool:
    """Whether this process has one point of a sweep to run, and others the rest."""
    return VARIABLE in os.environ


class OnePoint(Callback):
    """Narrows a sweep down to the point that `VDSR_POINT` asks for; ends with status 1 if that fails."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        asked = os.environ.get(VARIABLE)
        if asked is None:
            return
        every = points(config)
        if asked == "list":
            _check(config, every)
            sys.stdout.writelines(" ".join(point) + "\n" for point in every)
            sys.exit()
        if not asked.isdecimal() or int(asked) >= len(every):
            sys.exit(f"error: {VARIABLE}={asked}: the sweep has the points 0 to {len(every) - 1}")
        with flag_override(config, ["struct", "readonly"], [False, False]):
            config.hydra.sweeper.params = {}
            config.hydra.overrides.task = every[int(asked)]

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if one_point() and math.isnan(job_return.return_value):  # how a sweep marks a point that failed
            self.failed = True

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if getattr(self, "failed", False):
            sys.exit(1)


def _check(config: DictConfig, every: list[list[str]]) -> None:
    try:
        for point in every:
            GlobalHydra.instance().config_loader().load_sweep_config(config, point)
    except Exception as error:  # Hydra would only warn, here
        complaint = explain(error)
        if complaint is None:
            raise
        sys.exit(f"error: {complaint}")


def points(config: DictConfig) -> list[list[str]]:
    """Every point as its overrides, in the order in which the sweep runs them."""
    swept = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    (every,) = BasicSweeper.split_arguments(parser.parse_overrides([*swept, *config.hydra.overrides.task]), None)
    return every
