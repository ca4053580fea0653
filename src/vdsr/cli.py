"""From the command line to a function: Hydra, with errors written for people.

Light on purpose: `--help` and `--cfg job` must not wait for torch.
"""

import difflib
import errno
import functools
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vdsr.errors import InputError

log = logging.getLogger(__name__)

LONGEST_NAME = 120  # file systems allow 255 bytes; W&B ids 128 characters


# the user's disk and rights, not our bugs
DISK_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


def command(
    config_name: str,
    point_failed: Callable[[DictConfig, str], None] = lambda cfg, why: None,
    verbatim: Sequence[str] = (),
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a script's entry point out of a function of a composed config, `conf/<config_name>.yaml`.

    What the user can mend ends in one line on stderr and exit status 1. In a sweep a point that fails
    is logged, given to `point_failed` and scored NaN, so that the other points still run.
    verbatim: keys whose values are file names, which may hold what Hydra's grammar would read as its own.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def guarded(cfg: DictConfig) -> Any:
            sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
            try:
                return task(cfg)
            except Exception as error:
                complaint = explain(error)
                if not sweeping and complaint:
                    sys.exit(f"error: {complaint}")
                if not sweeping:
                    raise
                log.error("this point failed: %s", complaint or error, exc_info=complaint is None)
                point_failed(cfg, complaint or f"{type(error).__name__}: {error}")
                return float("nan")

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises in place of printing; the line is ours
            sys.argv[1:] = [quoted(argument, verbatim) for argument in sys.argv[1:]]
            try:
                hydra.main(version_base="1.3", config_path="../conf", config_name=config_name)(guarded)()
            except Exception as error:
                complaint = explain(error)
                if complaint is None:
                    raise
                sys.exit(f"error: {complaint}")

        return main

    return decorate


def quoted(argument: str, verbatim: Sequence[str]) -> str:
    """`key=va(l,ue` → `key='va(l,ue'` for these keys, unless the value is quoted, null or free of such characters."""
    key, equals, value = argument.partition("=")
    if key not in verbatim or not equals or re.fullmatch(r"'.*'|\".*\"|[A-Za-z0-9_./+-]*", value):
        return argument
    value = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value)
    return f"{key}='{value}'"


def register_resolvers() -> None:
    """Teach OmegaConf `${run_id:<overrides>,<seed>}`, `${same_epochs:<steps>,<scales>}` and what has no arguments."""
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("same_epochs", same_epochs, replace=True)
    OmegaConf.register_new_resolver("sweep_id", sweep_id, replace=True)
    OmegaConf.register_new_resolver("slurm_scripts", lambda: str(Path(__file__).parents[2] / "slurm"), replace=True)


def same_epochs(steps: int, scales: Sequence[float]) -> int:
    """The steps that make as many epochs of a set of scales as `steps` do of the paper's three: each adds patches."""
    return round(steps * len(scales) / 3)


def sweep_id() -> str:
    """Name a sweep by its command line. Its points learn the name through the environment (VDSR_SWEEP)."""
    aside = r"\+?experiment=|hydra[./]|name=|paths\.|trainer\.(num_nodes|devices)="
    arguments = [a for a in sys.argv[1:] if "=" in a and not re.match(aside, a)]
    return os.environ.setdefault("VDSR_SWEEP", _short("_".join(arguments)) or "default")


def run_id(overrides: str, seed: int) -> str:
    """Name a run by what was asked of it, so that the same command finds its own directory again.

    overrides: Hydra's `override_dirname`. Every rank and every restart computes the same name. What a W&B sweep gives
    out has the run's id in its name, for a sweep may ask for the same point twice.
    """
    point = f"_{os.environ['WANDB_RUN_ID']}" if {"WANDB_SWEEP_ID", "WANDB_RUN_ID"} <= os.environ.keys() else ""
    return _short(f"{overrides}_seed-{seed}") + point


def _short(name: str) -> str:
    """One command's words as a folder's name and a W&B id, with nothing that a command line would misread."""
    name = re.sub(r"[^\w.+-]+", "-", name).replace("-_", "_").strip("-_")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:10]
        name = f"{name[: LONGEST_NAME - 11]}-{digest}"
    return name


def explain(error: BaseException) -> str | None:
    """One line for what a user can mend: bad input, a full disk, an unknown key; None for a bug."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, InputError):
        return str(error.__cause__)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _explain_config(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free space or name another folder (paths.data=…, paths.runs=…)"
    if type(error).__module__.startswith("submitit.") or 'Could not detect "srun"' in str(error):
        return (
            f"hydra/launcher=slurm: {' '.join(str(error).split())[:300]}; the same command goes on from what is there"
        )
    return None


def _explain_config(error: BaseException) -> str:
    """Hydra's or OmegaConf's complaint, with the nearest name where a key or an option is unknown."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give {error.full_key}=…"
    cause: BaseException | None = error
    while cause is not None:
        key, parent = getattr(cause, "key", None), getattr(cause, "parent_node", None)
        if key is not None and isinstance(parent, DictConfig):
            return f"{lines[0].rstrip('.')}: there is no key '{key}'" + _nearest(str(key), [str(k) for k in parent])
        cause = cause.__cause__
    wanted = re.search(r"Could not find '([^']+)'", lines[0])
    options = [line for line in lines[1:] if re.fullmatch(r"[\w./-]+", line)]
    if wanted and options:
        return lines[0] + _nearest(wanted.group(1).split("/")[-1], options)
    return " ".join(lines[:2])


def _nearest(name: str, options: list[str]) -> str:
    close = difflib.get_close_matches(name, options, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (there are: {', '.join(options)})" if options else ""


register_resolvers()  # here, for the jobs that a launcher sends out import this and run no main()
