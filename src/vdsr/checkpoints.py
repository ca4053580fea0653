"""Checkpoints of runs, read without executing anything that is in them."""

import pickle
from pathlib import Path
from typing import Any

import torch

from vdsr.errors import InputError

SPEC = "vdsr_network"  # key of the network's spec, in a checkpoint and in a weights file's metadata


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's contents as plain tensors and containers. Raises InputError; never unpickles objects."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path}: holds more than tensors and plain values, so it was not loaded") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        complaint = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged or no checkpoint ({complaint})") from None
    if not isinstance(checkpoint, dict) or SPEC not in checkpoint or "state_dict" not in checkpoint:
        raise InputError(f"{path}: not a checkpoint of this project; give weights.safetensors or a run's .ckpt")
    return checkpoint
