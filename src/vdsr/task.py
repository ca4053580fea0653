"""What one training step and one validation are; no files, no tracker, no particular network."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vdsr import hardware
from vdsr.benchmark import restore
from vdsr.checkpoints import SPEC
from vdsr.clip import Clip, gradient_figures
from vdsr.data import Pair, Picture
from vdsr.metrics import BenchmarkScore, Score
from vdsr.shards import ShardSet

Benchmark = tuple[str, float]  # a set's name and a scale


class SuperResolution(pl.LightningModule):
    """Trains a network ILR → HR and scores it as the benchmarks do.

    The loss is the paper's ½‖r − f(x)‖²: half the squared error, summed over the pixels of a patch
    and averaged over the patches of the batch, on luma in [0, 1]. (With r = HR − ILR and the network's
    output ILR + f(x), that is ½‖HR − output‖².) θ, γ and weight decay are to be read against this scale: a
    mean over pixels would make every gradient 1,681 times as small at 41×41.

    net: any ILR → HR module with `spec()`. optimiser: parameters → Optimizer. schedule: Optimizer →
    LRScheduler, stepped once a training step. clip: gradient clipping, called with the current γ.
    chunk: how many patches go through the network together, None for all: see `hardware.chunk`.
    compile: train through torch.compile; scoring never does, as each image would be compiled anew.
    fused: (ILR, HR) → that loss by kernels of its own, in place of the network's forward: see `vdsr.kernels`.
    scales: what to score at; test_scales: the same for the final table (`scales` if None).
    log_every: steps between two logged points; nothing synchronises in between.
    """

    def __init__(
        self,
        net: nn.Module,
        optimiser: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler],
        clip: Clip,
        scales: Sequence[float],
        patches_per_epoch: int,
        batch_size: int,
        test_scales: Sequence[float] | None = None,
        log_every: int = 10,
        chunk: int | None = None,
        compile: bool = False,
        fused: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.optimiser, self.schedule, self.clip = net, optimiser, schedule, clip
        self._train_forward = hardware.compiled(net) if compile else net.forward
        self.fused = fused
        self.val_scales, self.test_scales = tuple(scales), tuple(test_scales or scales)
        self.scales = self.val_scales  # of the validation or test under way
        self.log_every, self.chunk = log_every, chunk
        self.epochs_per_step = batch_size / patches_per_epoch
        self.scores: dict[Benchmark, Score] = {}  # the last validation's or test's
        self.scored_at = -1  # the step of that validation
        self.psnr_best = -math.inf  # of all validations, dB
        self.bicubic: dict[Benchmark, Score] = {}
        self._running: dict[tuple[Benchmark, str], BenchmarkScore] = {}

    def forward(self, ilr: Tensor) -> Tensor:
        """(B, 1, H, W) ILR luma in [0, 1] → the network's HR, same shape."""
        out: Tensor = self.net(ilr)
        return out

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        if self.fused:
            loss = self.fused(*batch)
        else:
            sr = hardware.in_chunks(self._train_forward, batch.ilr, self.chunk)
            loss = (sr - batch.hr).square().sum() / (2 * len(batch.hr))
        if self.logs_this_step:
            self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)  # of all ranks' patches
        return loss

    @property
    def logs_this_step(self) -> bool:
        """Whether the step under way is a logged one."""
        return (self.global_step + 1) % self.log_every == 0

    @property
    def epoch(self) -> float:
        """Passes over the training patches at every scale, so far."""
        return self.global_step * self.trainer.accumulate_grad_batches * self.epochs_per_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimiser = self.optimiser(self.net.parameters())
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": self.schedule(optimiser), "interval": "step"},
        }

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip with the learning rate that this very step is taken with."""
        gamma = float(optimizer.param_groups[0]["lr"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.logs_this_step:
            figures = gradient_figures(parameters, self.clip.bound(gamma))
            self.log("train/gradient_norm", figures.norm, prog_bar=True)
            self.log("train/share_clipped", figures.share_clipped, prog_bar=True)
            self.log("train/clip_bound", self.clip.bound(gamma))
            self.log("train/lr", gamma)
            self.log("epoch", self.epoch)
        self.clip(parameters, gamma)

    def validation_step(self, picture: Picture | None, batch_idx: int) -> None:
        """Score one image at every scale, in float32 whatever training's precision is; None is no image."""
        if picture is None:
            return
        for scale in self.scales:
            ilr, sr, hr = restore(self.net, picture, scale, self.device)
            benchmark = (picture.set, scale)
            self._running[benchmark, "network"].update(sr, hr, scale)
            if (benchmark, "bicubic") in self._running:
                self._running[benchmark, "bicubic"].update(ilr, hr, scale)

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        self._expect(self.trainer.datamodule.val_shards, self.val_scales)  # type: ignore[attr-defined]

    def on_test_epoch_start(self) -> None:
        self._expect(self.trainer.datamodule.test_shards, self.test_scales)  # type: ignore[attr-defined]

    def _expect(self, sets: Sequence[ShardSet], scales: tuple[float, ...]) -> None:
        """Every rank sums over the same sets and scales, also those it is dealt no image of."""
        self.scales = scales
        benchmarks = [(shards.name, scale) for shards in sets for scale in self.scales]
        self._running = {(benchmark, "network"): BenchmarkScore() for benchmark in benchmarks}
        self._running |= {(b, "bicubic"): BenchmarkScore() for b in benchmarks if b not in self.bicubic}
        for metric in self._running.values():
            metric.to(self.device)

    def on_validation_epoch_end(self) -> None:
        self._collect()
        self.psnr_best = max(self.psnr_best, self.mean_psnr)
        figures = {"val/psnr": self.mean_psnr, "val/gain": self.gain, "epoch": self.epoch}
        figures["val/psnr_best"] = self.psnr_best  # what W&B's sweeps sort by, which a summary's maximum cannot be
        for (name, scale), score in self.scores.items():
            key = f"val/{name}/x{scale:g}"
            figures |= {f"{key}/psnr": score.psnr, f"{key}/ssim": score.ssim}
            figures[f"{key}/gain"] = score.psnr - self.bicubic[name, scale].psnr
        self.log_dict(figures, sync_dist=True)  # equal on every rank already; Lightning wants to hear it

    def on_test_epoch_end(self) -> None:
        self._collect()

    @property
    def mean_psnr(self) -> float:
        """Mean PSNR in dB over the sets and scales of the last validation or test."""
        return sum(score.psnr for score in self.scores.values()) / len(self.scores)

    @property
    def gain(self) -> float:
        """The same mean above bicubic's, in dB."""
        return self.mean_psnr - sum(self.bicubic[key].psnr for key in self.scores) / len(self.scores)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave what rebuilds the network beside its weights."""
        checkpoint[SPEC] = copy.deepcopy(self.net.spec())  # type: ignore[operator]
        checkpoint["psnr_best"] = self.psnr_best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.psnr_best = checkpoint.get("psnr_best", -math.inf)

    def _collect(self) -> None:
        scores = {key: metric.compute() for key, metric in self._running.items()}
        self._running = {}
        self.scored_at = self.global_step
        self.bicubic |= {key: score for (key, row), score in scores.items() if row == "bicubic"}
        self.scores = {key: score for (key, row), score in scores.items() if row == "network"}
