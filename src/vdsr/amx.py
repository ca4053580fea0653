"""VDSR's training step by kernels of our own, on CPUs with matrix tiles (AMX): 2.7 times as fast as PyTorch's.

The kernels are in amx.cpp, compiled on first use and kept in the user's cache.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdsr.errors import InputError
from vdsr.files import whole
from vdsr.net import VDSR

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp"]
FLAGS += ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
WIDTH = 64  # filters, what the kernels are written for


class HalfSquaredError:
    """(ILR, HR) → ½‖HR − output‖², summed over pixels and averaged over patches, with its gradients.

    net: a VDSR of 64 filters and at least 3 layers; its parameters are read at each call.
    Called with (B, 1, P, P) float32 luma in [0, 1]; features, weights and the features' gradients are bf16, as under
    autocast, sums float32. The patches are dealt out to PyTorch's number of threads. Raises InputError where the
    kernels cannot be had: see `missing`.
    """

    def __init__(self, net: VDSR) -> None:
        if reason := missing(net):
            raise InputError(f"no AMX kernels here: {reason}")
        self.net = net
        self.kernels = _library()
        self.packed = torch.zeros(self.kernels.vdsr_packed(net.depth - 2), dtype=torch.bfloat16)

    def __call__(self, ilr_B1PP: Tensor, hr_B1PP: Tensor) -> Tensor:
        loss: Tensor = _Step.apply(self, ilr_B1PP, hr_B1PP, *self.net.parameters())  # type: ignore[no-untyped-call]
        return loss

    def run(self, ilr_B1PP: Tensor, hr_B1PP: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss, a scalar, and its gradients in the order and shapes of the parameters."""
        ilr_B1PP, hr_B1PP = ilr_B1PP.contiguous(), hr_B1PP.contiguous()
        batch, _, height, width = ilr_B1PP.shape
        layers = self.net.depth - 2
        flat = torch.cat([_taps_before_inputs(p).reshape(-1) for p in parameters])
        self.kernels.vdsr_pack(flat.data_ptr(), layers, self.packed.data_ptr())

        threads = min(batch, torch.get_num_threads())
        grads, squares = flat.new_zeros(threads, len(flat)), torch.zeros(threads, dtype=torch.float64)
        self.kernels.vdsr_step(
            *(planes.data_ptr() for planes in (ilr_B1PP, hr_B1PP)),
            *(batch, height, width, layers, self.net.residual, 1 / batch),
            *(self.packed.data_ptr(), flat.data_ptr(), threads, grads.data_ptr(), squares.data_ptr()),
        )
        if (squares < 0).any():
            raise MemoryError("AMX kernels: no memory for the features of a patch")
        parts = grads.sum(0).split([p.numel() for p in parameters])
        return (squares.sum() / (2 * batch)).float(), [
            _inputs_before_taps(part.view(_taps_before_inputs(p).shape))
            for p, part in zip(parameters, parts, strict=True)
        ]


class _Step(torch.autograd.Function):
    """Forward and back in one: what autograd asks for later is there already."""

    @staticmethod
    def forward(ctx: Any, step: HalfSquaredError, ilr: Tensor, hr: Tensor, *parameters: Tensor) -> Tensor:
        loss, ctx.grads = step.run(ilr, hr, parameters)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        grads, ctx.grads = ctx.grads, None
        return None, None, None, *torch._foreach_mul(grads, float(grad_outputs[0]))


def _taps_before_inputs(p: Tensor) -> Tensor:
    """(O, I, 3, 3) weights as (O, 3, 3, I), as they lie in memory with channels_last; biases as they are."""
    return p.permute(0, 2, 3, 1) if p.ndim == 4 else p


def _inputs_before_taps(p: Tensor) -> Tensor:
    return p.permute(0, 3, 1, 2) if p.ndim == 4 else p


def missing(net: nn.Module) -> str | None:
    """Why the kernels cannot train `net` on this machine; None where they can."""
    return unfit(net) or unsupported() or _uncompiled()


def unfit(net: nn.Module) -> str | None:
    """Why the kernels are not for this network."""
    fits = isinstance(net, VDSR) and net.width == WIDTH and net.depth >= 3
    return None if fits else f"they are for VDSR with {WIDTH} filters and at least 3 layers"


@cache
def unsupported() -> str | None:
    """Why the kernels are not for this CPU or system."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "they are for x86-64 and Linux"
    words = set(Path("/proc/cpuinfo").read_text().split())
    if absent := {"amx_tile", "amx_bf16", "avx512_bf16"} - words:
        return f"this CPU has no {', '.join(sorted(absent))}"
    return None


@cache
def _uncompiled() -> str | None:
    """Why they could not be compiled or started."""
    try:
        return "the system does not grant AMX's tiles" if _library().vdsr_permit() else None
    except (OSError, subprocess.SubprocessError) as error:
        return " ".join(str(getattr(error, "stderr", None) or error).split())[:200]


@cache
def _library() -> ctypes.CDLL:
    """The compiled kernels. Raises OSError or CalledProcessError when they cannot be compiled or loaded."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not compiler:
        raise FileNotFoundError("there is no C++ compiler: install g++, or set CXX")
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *FLAGS]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdsr"
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            path = _compiled(compiler, folder / f"amx-{digest}.so")
        except (OSError, InputError):  # a home that cannot be written
            path = _compiled(compiler, Path(elsewhere) / "amx.so")
        library = ctypes.CDLL(str(path))
    pointer, whole_number = ctypes.c_void_p, ctypes.c_int
    library.vdsr_packed.argtypes, library.vdsr_packed.restype = [whole_number], ctypes.c_int64
    library.vdsr_pack.argtypes, library.vdsr_pack.restype = [pointer, whole_number, pointer], None
    arrays, sizes = [pointer] * 2, [whole_number] * 5
    library.vdsr_step.argtypes = arrays + sizes + [ctypes.c_float] + arrays + [whole_number] + arrays  # type: ignore[operator]
    library.vdsr_step.restype = None
    return library


def _compiled(compiler: str, path: Path) -> Path:
    if not path.exists():
        with whole(path) as temporary:
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(temporary)]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return path
