"""The training step: plain eager, bare bf16, and inside Trainer.fit with data and logging."""

import functools
import itertools
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from measure import in_turns, peak
from torch import Tensor, nn

from vdsr import hardware, kernels
from vdsr.clip import Adjustable
from vdsr.data import CROPS_AT_ONCE, Batches, Pair, SuperResolutionData
from vdsr.net import VDSR, channels_last
from vdsr.schedule import drops
from vdsr.task import SuperResolution

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning")

PATCH = 41
LOG_EVERY = 20  # as conf/trainer/default.yaml has it


def flops(depth: int, width: int = 64) -> float:
    """Floating point operations of one training step for one patch: forward, and twice that backward."""
    weights = 9 * (width + (depth - 2) * width**2 + width)
    return 3 * 2 * weights * PATCH**2


def batch(size: int) -> Pair:
    generator = torch.Generator().manual_seed(0)
    return Pair(*torch.rand(2, size, 1, PATCH, PATCH, generator=generator).unbind(0))


class Plain:
    """The reference: what one would write first. Eager, fp32, NCHW, the same network, clip and SGD."""

    def __init__(self, depth: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(64, 1, 3, padding=1))
        self.optimiser = torch.optim.SGD(self.net.parameters(), 1e-6, momentum=0.9, weight_decay=1e-4)

    def step(self, batch: Pair) -> None:
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(self.net.parameters(), 100.0)
        self.optimiser.step()

    def loss(self, batch: Pair) -> Tensor:
        return (self.forward(batch.ilr) - batch.hr).square().sum() / (2 * len(batch.hr))

    def forward(self, ilr: Tensor) -> Tensor:
        out: Tensor = ilr + self.net(ilr)
        return out


class Bare(Plain):
    """Our network in bf16, by our own kernels where they can be had, with nothing around it.

    own=False: bf16 autocast, channels_last and chunks in any case.
    """

    def __init__(self, depth: int, precision: torch.dtype = torch.bfloat16, own: bool = True) -> None:
        self.net = channels_last(VDSR(depth))
        self.precision = precision
        fitting = own and precision == torch.bfloat16 and not kernels.missing(self.net)
        self.fused = kernels.HalfSquaredError(self.net) if fitting else None
        self.optimiser = torch.optim.SGD(self.net.parameters(), 1e-6, momentum=0.9, weight_decay=1e-4)

    def loss(self, batch: Pair) -> Tensor:
        return self.fused(*batch) if self.fused else super().loss(batch)

    def forward(self, ilr: Tensor) -> Tensor:
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            return hardware.in_chunks(self.net, ilr, hardware.chunk("auto"))


class _Clock(pl.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def fit(depth: int, data: SuperResolutionData, steps: int) -> float:
    """Seconds per step of Trainer.fit as a run has it: loading, degradation, clip, logging."""
    net = channels_last(VDSR(depth))
    bf16 = hardware.precision("auto") == "bf16-mixed"
    task = SuperResolution(
        net=net,
        optimiser=functools.partial(torch.optim.SGD, lr=1e-6, momentum=0.9, weight_decay=1e-4),
        schedule=functools.partial(drops, steps=steps, number=3, factor=0.1),
        clip=Adjustable(1e-4),
        scales=data.scales,
        patches_per_epoch=data.plan.patches,
        batch_size=data.batch_size,
        log_every=LOG_EVERY,
        chunk=hardware.chunk("auto"),
        fused=kernels.HalfSquaredError(net) if bf16 and not kernels.missing(net) else None,
    )
    clock = _Clock()
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        precision=hardware.precision("auto"),  # type: ignore[arg-type]
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(task, datamodule=data)
    # a logged step in each window, and no first step
    windows = zip(clock.times, clock.times[LOG_EVERY:], strict=False)
    return statistics.median((end - start) / LOG_EVERY for start, end in windows)


def steps_beside_each_other(depth: int, size: int, data: SuperResolutionData, rounds: int) -> dict[str, float]:
    """Seconds per step: plain, bare by PyTorch's kernels, bare and fit, in turns."""
    fixed, plain, bare, torchs = batch(size), Plain(depth), Bare(depth), Bare(depth, own=False)
    found: dict[str, list[float]] = {"plain": [], "PyTorch's": [], "bare": [], "fit": []}
    plain.step(fixed)
    for _ in range(rounds):
        found["plain"].append(in_turns({"plain": lambda: plain.step(fixed)}, 1)["plain"])
        found["PyTorch's"].append(in_turns({"bare": lambda: torchs.step(fixed)}, 3)["bare"])
        before = in_turns({"bare": lambda: bare.step(fixed)}, 10)["bare"]
        found["fit"].append(fit(depth, data, LOG_EVERY + 6))
        after = in_turns({"bare": lambda: bare.step(fixed)}, 10)["bare"]
        found["bare"].append((before + after) / 2)
    return {name: statistics.median(values) for name, values in found.items()}


def loading(data: SuperResolutionData, rounds: int) -> dict[str, float]:
    """Seconds per batch: the plan and the windows alone, and with their degradation."""
    together = max(1, CROPS_AT_ONCE // data.batch_size)  # what `Batches` makes in one go
    batches = iter(Batches(data.plan, data.store, PATCH, 0, range(data.batch_size)))

    firsts = itertools.count(0, together)

    def windows() -> None:
        for crops in data.plan.step(next(firsts), count=together):
            data.store.windows(crops, PATCH)

    def pairs() -> None:
        for _ in range(together):
            next(batches)

    found = in_turns({"loading": windows, "loading and degradation": pairs}, rounds)
    return {name: seconds / together for name, seconds in found.items()}


def share_of_peak(depth: int, size: int, rounds: int) -> float:
    """What a bare bf16 step by PyTorch's kernels reaches of the matrix product's FLOP/s, both measured here."""
    bare, fixed = Bare(depth, own=False), batch(size)
    seconds = in_turns({"bare": lambda: bare.step(fixed)}, 3 * rounds)["bare"]
    return flops(depth) * size / seconds / peak(torch.bfloat16, rounds)


def share_of_peak_without_amx(depth: int, size: int, rounds: int) -> float:
    """The same in a process that may use AVX512-BF16 but not AMX: most processors that have bf16 have only that."""
    script = f"import training; print(training.share_of_peak({depth}, {size}, {rounds}))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)
