"""A run from its configuration: seed → build → fit → test → record. Only this module knows Hydra's config."""

import contextlib
import hashlib
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torch import Tensor

from vdsr import checkpoint_io, checkpoints, hardware, kernels, net, records, signals, tables, tracking, weights
from vdsr.benchmark import seconds_per_image
from vdsr.callbacks.agreement import Agreement
from vdsr.callbacks.pictures import Pictures
from vdsr.callbacks.preemption import Preemption
from vdsr.callbacks.progress import ProgressBar
from vdsr.callbacks.recorder import Recorder, gain_where_trained, scores
from vdsr.callbacks.saving import Saving
from vdsr.callbacks.throughput import Throughput
from vdsr.claim import Claim
from vdsr.data import SuperResolutionData
from vdsr.errors import InputError
from vdsr.ranks import Ranks, rank
from vdsr.sample import ensure_sample
from vdsr.task import SuperResolution

log = logging.getLogger(__name__)

# Lightning greets at each start and warns of its own use of PyTorch; neither is for whoever trains.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # a login node is for trying things out

WEIGHTS = "weights.safetensors"
# what may differ between two runs of the same experiment: where things are, as the sets' checksums say what they
# are, on how many ranks it runs, and by whose kernels
INCIDENTAL = (
    "paths",
    "logger",
    "data.train",
    "data.val",
    "data.test",
    "trainer.num_nodes",
    "trainer.devices",
    "trainer.kernels",
    "trainer.amx",  # its name in earlier records
)


def run(cfg: DictConfig) -> float:
    """Train, test and record one run in Hydra's output folder; returns the final mean PSNR in dB.

    A run that finds its own checkpoint there continues; one that is finished is only reported.
    Raises InputError when the folder holds a run of another configuration or data, and `signals.Preempted` when a
    signal asks the process to leave; the same command then continues the run.
    """
    signals.catch()  # where src/train.py has not: in a job that submitit starts
    hydra_config = HydraConfig.get()
    _check_launch(cfg, hydra_config.mode == RunMode.MULTIRUN)
    run_dir = Path(os.path.relpath(hydra_config.runtime.output_dir))  # short in every message
    hardware.exact()
    _check_numbers(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    folders = (cfg.data.train, *cfg.data.val, *(cfg.data.test or []))
    ensure_sample(Path(cfg.paths.data), [Path(folder) for folder in folders])

    data: SuperResolutionData = hydra.utils.instantiate(cfg.data)
    network = net.channels_last(hydra.utils.instantiate(cfg.model))
    if not list(network.parameters()):
        raise InputError(f"{type(network).__name__} has nothing to train: python src/evaluate.py model=bicubic")
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    record = _new_record(config, list(hydra_config.overrides.task), network, data)
    if finished := _earlier(run_dir, record):
        log.info("finished already: %s (remove the folder to run it again)", run_dir)
        _show(finished, run_dir, [])
        return float(finished["psnr"])
    data.load()
    record |= records.provenance() | {"hardware": hardware.describe()}
    record["precision"] = hardware.precision(cfg.trainer.precision)

    fused = _fused(cfg.trainer, network)
    record["kernels"] = kernels.instructions() if fused else "PyTorch"
    task = SuperResolution(
        net=network,
        optimiser=hydra.utils.instantiate(cfg.optim.optimiser),
        schedule=hydra.utils.instantiate(cfg.optim.schedule),
        clip=hydra.utils.instantiate(cfg.clip),
        scales=data.val_scales,
        test_scales=data.test_scales,
        patches_per_epoch=data.plan.patches,
        batch_size=data.batch_size,
        log_every=cfg.trainer.log_every_n_steps,
        chunk=hardware.chunk(cfg.trainer.chunk),
        compile=not fused and (torch.cuda.is_available() if cfg.trainer.compile == "auto" else cfg.trainer.compile),
        fused=fused,
    )
    claim = Claim(run_dir)
    recorder = Recorder(run_dir / records.FILE, record, claim)
    saving = Saving(run_dir / "checkpoints" / checkpoint_io.LAST, cfg.trainer.checkpoint_every, recorder)
    preemption = Preemption(saving, Ranks())
    loggers: list[Logger] = []
    exit_code = 1
    try:
        signals.mode(signals.RAISE)
        loggers += _loggers(cfg, run_dir, config)
        tracking.log_data(loggers, [data.train_shards, *data.val_shards, *data.test_shards])
        _train(cfg, run_dir, data, task, preemption, loggers)
        exit_code = 0
    except BaseException as error:
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(run_dir)  # a full disk does not say where
        if (status := signals.asked()) and not isinstance(error, signals.Preempted):
            # most likely another rank has left first, and is missed here
            log.warning("asked to leave, after %s", " ".join(f"{type(error).__name__}: {error}".split())[:200])
            error = signals.Preempted(status)
        if isinstance(error, signals.Preempted):
            exit_code = int(error.code or 0)
            if signals.stopped_by_sweep(exit_code):
                exit_code = 0
            else:
                tracking.preempting(loggers)
        if record["status"] == "running" and rank() == 0 and claim.held:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                recorder.end(_ending(error))
        raise error
    finally:
        tracking.finish(loggers, exit_code)
        preemption.wait_for_others()
        claim.release()
    if record["status"] == "diverged":
        raise InputError(_diverged(run_dir, record))
    _show(record, run_dir, tracking.where(loggers))
    return float(record["psnr"])


def _train(
    cfg: DictConfig,
    run_dir: Path,
    data: SuperResolutionData,
    task: SuperResolution,
    preemption: Preemption,
    loggers: list[Logger],
) -> None:
    """Fit from wherever the run stands, test, and leave weights and a complete record."""
    saving = preemption.saving
    recorder = saving.recorder
    found = checkpoint_io.newest(saving.path.parent, mend=rank() == 0)
    if found and found[1][checkpoints.SPEC] != task.net.spec():  # type: ignore[operator]
        raise InputError(f"{found[0]} is of another network, {found[1][checkpoints.SPEC]}: remove it, or set name=…")
    step = found[1]["global_step"] if found else 0
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg.trainer, resolve=True))
    validations = settings.pop("validations")
    for key in ("kernels", "compile", "chunk", "checkpoint_every"):
        settings.pop(key)  # the task's and the callbacks'
    settings["precision"] = hardware.precision(settings["precision"])
    trainer = _trainer(
        **settings,
        max_epochs=-1,  # max_steps ends a run; epochs are counted in patches
        # in batches, of which a step accumulates several
        val_check_interval=max(1, settings["max_steps"] // validations) * settings["accumulate_grad_batches"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the plan deals samples out itself
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),  # a log file gets a line a validation
        default_root_dir=run_dir,
        logger=loggers,
        callbacks=[
            Agreement(preemption.ranks, _facts(recorder.record, step)),
            *_callbacks(run_dir, data, recorder),
            saving,
            preemption,
        ],
        plugins=[checkpoint_io.Whole(), *([SLURMEnvironment(auto_requeue=False)] if _in_slurm() else [])],
    )
    if found and rank() == 0:
        log.info("continuing at step %d from %s", step, found[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # so it should, for a run that continues
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # by an earlier version
        trainer.fit(task, datamodule=data, ckpt_path=found[0] if found else None, weights_only=True)
    record = recorder.record
    if record["status"] == "diverged":
        recorder.write(trainer)
        return
    saving.save(trainer)
    preemption.leave_if_asked(trainer)
    signals.mode(signals.RAISE)
    best = max((point["psnr"] for point in record["validations"]), default=None)
    same = (data.test_shards, data.test_scales) == (data.val_shards, data.val_scales)
    if not same or task.scored_at != trainer.global_step:
        trainer.test(task, datamodule=data, verbose=False, weights_only=True)
    gain = gain_where_trained(task, data.scales)
    record |= {
        "status": "finished",
        "metrics": scores(task),
        "psnr": task.mean_psnr,
        "gain": task.gain,
        "psnr_best": best,
        "left_bicubic": gain > records.LEFT_BICUBIC,
        "patches_per_second": _median([p["patches_per_second"] for p in record["curve"] if "patches_per_second" in p]),
    }
    if trainer.is_global_zero:
        figures = {key: record[key] for key in ("psnr", "gain")}
        tracking.log_scores(trainer.loggers, record["metrics"], figures, trainer.global_step)
        if not record["left_bicubic"]:
            log.warning("this run did not leave bicubic behind (%+.3f dB): see the record's curve", gain)
        timed = data.val_shards[0]
        seconds = seconds_per_image(task.net, data.pictures(timed), trainer.strategy.root_device)
        record["inference"] = {"set": timed.name, "seconds_per_image": seconds}
        weights.save(
            task.net,
            run_dir / WEIGHTS,
            scales=list(data.scales),
            steps=trainer.global_step,
            data=data.train_shards.checksum,
            metrics=record["metrics"],
        )
        facts = {**record["network"], "steps": trainer.global_step, **figures, "data": record["data"]}
        tracking.log_weights(trainer.loggers, run_dir / WEIGHTS, facts)
    recorder.write(trainer)


def _fused(trainer: DictConfig, network: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Our own kernels where they are wanted and can be had; None for PyTorch's, with one line, where not."""
    if not trainer.kernels:
        return None
    if hardware.precision(trainer.precision) != "bf16-mixed":
        unwanted: str | None = "they are for trainer.precision=bf16-mixed"
    elif trainer.accelerator != "cpu" and torch.cuda.is_available():
        unwanted = "they are for trainer.accelerator=cpu"
    elif trainer.compile is True:
        unwanted = "they are for trainer.compile=false"
    else:
        unwanted = kernels.unfit(network) or kernels.unsupported()
    reason = unwanted or kernels.missing(network)
    if not reason:
        return kernels.HalfSquaredError(cast(net.VDSR, network))
    if rank() == 0 and (trainer.kernels is True or not unwanted):
        log.warning("training with PyTorch's kernels, not our own: %s", reason)
    return None


def _trainer(**settings: Any) -> pl.Trainer:
    """Lightning's Trainer; what it says of a setting that it cannot use, said in one line."""
    try:
        return pl.Trainer(**settings)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"trainer: {' '.join(str(error).split())[:200]}") from None


def _callbacks(run_dir: Path, data: SuperResolutionData, recorder: Recorder) -> list[Callback]:
    folder = run_dir / "checkpoints"
    best = ModelCheckpoint(folder, "best", monitor="val/psnr", mode="max", enable_version_counter=False)
    callbacks: list[Callback] = [Throughput(data.batch_size), Pictures(run_dir / "pictures"), recorder, best]
    if sys.stderr.isatty():
        callbacks.append(ProgressBar())
    return callbacks


def _loggers(cfg: DictConfig, run_dir: Path, config: dict[str, Any]) -> list[Logger]:
    loggers: list[Logger] = []
    for logger in (cfg.logger or {}).values():
        # a partial: the configuration itself must not be instantiated
        loggers.append(hydra.utils.instantiate(logger, _partial_=True)(run_dir, config))
    return loggers


def _new_record(
    config: dict[str, Any], overrides: list[str], network: torch.nn.Module, data: SuperResolutionData
) -> records.Record:
    sets = {shards.name: shards.checksum for shards in [data.train_shards, *data.val_shards, *data.test_shards]}
    return {
        "format": records.FORMAT,
        "name": config["name"],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": "python src/train.py " + shlex.join(sys.argv[1:]),  # wherever it lies
        "overrides": overrides,
        "config": config,
        "seed": config["seed"],
        "data": {"train": data.train_shards.name, "checksums": sets, "patches_per_epoch": data.plan.patches},
        "network": {**network.spec(), "parameters": sum(p.numel() for p in network.parameters())},  # type: ignore[operator]
    }


def _earlier(run_dir: Path, record: records.Record) -> records.Record | None:
    """The record of a finished run of the same configuration. Raises InputError for another one's or a diverged run."""
    path = run_dir / records.FILE
    if not path.exists():
        return None
    earlier = records.read(path)
    if "data" not in earlier:
        return None  # it failed before it had any
    old, new = (_essential(r["config"]) | {"data sets": r["data"]} for r in (earlier, record))
    if changes := records.differences(old, new):
        text = ", ".join(f"{key}: {a} → {b}" for key, (a, b) in list(changes.items())[:3])
        raise InputError(f"{run_dir} holds a run of another configuration ({text}): remove it, or set name=…")
    if earlier["status"] == "diverged":
        raise InputError(_diverged(run_dir, earlier))
    return earlier if earlier["status"] == "finished" and (run_dir / WEIGHTS).exists() else None


def _essential(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the result, by dotted key."""
    every = records.flatten(config)
    return {key: value for key, value in every.items() if not any(f"{key}.".startswith(f"{i}.") for i in INCIDENTAL)}


def _facts(record: records.Record, step: int) -> dict[str, Any]:
    """What must be equal on all ranks of a run: code, versions, data, configuration, and where it continues."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".cpp")):
        digest.update(path.read_bytes())
    told = {"data": record["data"], "version": record["versions"], **{k: record[k] for k in ("precision", "kernels")}}
    facts = _essential(record["config"]) | records.flatten(told)
    return facts | {"the code (SHA-256 of src/vdsr)": digest.hexdigest()[:12], "the step to continue from": step}


def _diverged(run_dir: Path, record: records.Record) -> str:
    return f"{run_dir}: diverged: {record['error']}; lower optim.lr or clip.theta"


def _check_numbers(cfg: DictConfig) -> None:
    """Raises InputError for a setting that is no number, or none that makes sense."""
    whole = ["max_steps", "validations", "checkpoint_every", "log_every_n_steps", "accumulate_grad_batches"]
    least = {f"trainer.{key}": 1 for key in whole} | {"data.patch": 1, "data.batch_size": 1, "seed": 0}
    for key, bound in least.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < bound:
            raise InputError(f"{key}={value}: give a whole number, {bound} or more")
    if not isinstance(cfg.optim.lr, (int, float)) or not cfg.optim.lr > 0:
        raise InputError(f"optim.lr={cfg.optim.lr}: give a number above 0")
    if cfg.trainer.chunk not in ("auto", None) and not (isinstance(cfg.trainer.chunk, int) and cfg.trainer.chunk > 0):
        raise InputError(f"trainer.chunk={cfg.trainer.chunk}: give auto, null for all, or a whole number above 0")
    for key in ("kernels", "compile"):
        if cfg.trainer[key] not in ("auto", True, False):
            raise InputError(f"trainer.{key}={cfg.trainer[key]}: there are auto, true and false")
    if not cfg.data.train:
        raise InputError("data.train has no value: name a prepared folder")


def _in_slurm() -> bool:
    """Whether Slurm's srun started this rank; torchrun may have, within a job."""
    return bool(SLURMEnvironment.detect()) and not TorchElasticEnvironment.detect()


def _check_launch(cfg: DictConfig, sweeping: bool) -> None:
    """A sweep cannot start ranks itself: each child process would start the whole sweep again."""
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    if _in_slurm() and isinstance(devices, int) and devices * nodes != int(os.environ["SLURM_NTASKS"]):
        raise InputError(
            f"Slurm started {os.environ['SLURM_NTASKS']} tasks, but trainer.devices={devices} × "
            f"trainer.num_nodes={nodes} is {devices * nodes}: set them to the job's tasks a node and its nodes"
        )
    several = (isinstance(devices, int) and devices > 1) or nodes > 1
    if sweeping and several and "WORLD_SIZE" not in os.environ and "SLURM_NTASKS" not in os.environ:
        raise InputError(
            f"a sweep runs each point on one device, not {devices}×{nodes}: set trainer.devices=1, pick one point with "
            "hydra.mode=RUN, or start the ranks with srun or torchrun"
        )


@rank_zero_only
def _show(record: records.Record, run_dir: Path, trackers: list[str]) -> None:
    console = Console()
    console.print(tables.benchmark(record))
    lines = [
        f"record: {run_dir / records.FILE}",
        f"weights: {run_dir / WEIGHTS}",
        f"pictures: {run_dir / 'pictures'}",
    ]
    for line in lines + trackers:
        console.print(line, soft_wrap=True, highlight=False)


def _ending(error: BaseException) -> dict[str, str]:
    """What the record of a run says that an error ended."""
    if isinstance(error, signals.Preempted):
        return {"status": "preempted"}
    stopped = isinstance(error, (KeyboardInterrupt, SystemExit))  # Lightning exits on Ctrl-C
    line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return {"status": "stopped" if stopped else "failed", "error": line}


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
