"""What this machine is, and what precision it is fast in."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def precision(setting: str) -> str:
    """Lightning's name for `setting`; `auto` is bf16 autocast where the hardware has it, else fp32."""
    if setting != "auto":
        return setting
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


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
