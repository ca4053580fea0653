"""Checkpoints of runs, read without executing anything that is in them."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from vdsr.errors import InputError

SPEC = "vdsr_network"  # key of the network's spec, in a checkpoint and in a weights file's metadata


def unpickle(path: Path) -> Any:
    """What a .ckpt, .pth or .pt holds, as tensors and plain containers. Raises InputError; never unpickles objects."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; what cannot be read is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path}: holds more than tensors and plain values, so it was not loaded") from None
    except Exception as error:  # on damaged bytes the unpickler raises nearly anything
        complaint = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged or no checkpoint ({complaint})") from None


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of a run: the network's spec, its state and the trainer's. Raises InputError."""
    checkpoint = unpickle(path)
    if not (
        isinstance(checkpoint, dict)
        and isinstance(checkpoint.get(SPEC), dict)
        and isinstance(state := checkpoint.get("state_dict"), dict)
        and all(isinstance(name, str) for name in state)
    ):
        raise InputError(f"{path}: not a checkpoint of this project; give weights.safetensors or a run's .ckpt")
    return checkpoint
