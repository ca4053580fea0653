"""What this machine is, and what precision it is fast in."""

import logging
import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vdsr.errors import InputError

log = logging.getLogger(__name__)


def precision(setting: str) -> str:
    """Lightning's name for `setting`; `auto` is bf16 autocast where the hardware has it, else fp32."""
    if setting != "auto":
        return setting
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def device(accelerator: str) -> torch.device:
    """The device of `auto` (the GPU where there is one), `cpu` or `cuda`. Raises InputError for anything else."""
    if accelerator not in ("auto", "cpu", "cuda"):
        raise InputError(f"accelerator={accelerator}: there are auto, cpu and cuda")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def resident() -> int:
    """Bytes of memory that this process holds now; on a Mac, the most that it has held."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def exact() -> None:
    """Make float32 mean float32: by default CUDA's convolutions round their inputs to TF32's 10 bits."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def compiled(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network's forward through torch.compile; as it is, with one line, where that cannot be had."""
    from torch._dynamo.exc import TorchDynamoException  # a second of import that only this needs

    eager: Callable[[Tensor], Tensor] = net.forward
    # CUDA graphs: at batch 64 a step is shorter than the calls that launch it
    forward = torch.compile(eager, mode="reduce-overhead" if torch.cuda.is_available() else "default")

    def attempt(ilr: Tensor) -> Tensor:
        nonlocal forward
        try:
            return forward(ilr)
        except TorchDynamoException as error:
            log.warning("torch.compile cannot be had here (%s); going on without", str(error).splitlines()[0])
            forward = eager
            return eager(ilr)

    return attempt


def chunk(setting: str | int | None) -> int | None:
    """How many patches go through the network together; `auto` is 16 on a CPU, and all (None) on a GPU.

    The features of 16 patches stay in a core's cache from layer to layer: a bf16 step at D = 20 on two cores with AMX
    is 1.17 times as fast at batch 64, 1.9 times at 256.
    """
    if setting == "auto":
        return None if torch.cuda.is_available() else 16
    return cast("int | None", setting)


def in_chunks(forward: Callable[[Tensor], Tensor], batch: Tensor, size: int | None) -> Tensor:
    """`forward` of a batch (B, …), `size` of it at a time; gradients then flow back by the chunk too."""
    if size is None or len(batch) <= size:
        return forward(batch)
    return torch.cat([forward(part) for part in batch.split(size)])


def describe() -> dict[str, Any]:
    """Processor, cores, PyTorch's threads and GPUs, by name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
