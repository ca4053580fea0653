"""VDSR's training step by kernels of our own, on CPUs with AMX or AVX512-BF16; why and how fast: DECISIONS 25.

The kernels are in kernels.cpp, compiled on first use and kept in the user's cache.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vdsr.errors import InputError
from vdsr.files import whole
from vdsr.net import VDSR

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp"]
FLAGS += ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16"]
# what the kernels can be made of, the fastest first: the CPU's features that it takes, and the compiler's flags
INSTRUCTIONS = {
    "AMX": ({"avx512_bf16", "amx_tile", "amx_bf16"}, ["-mamx-tile", "-mamx-bf16"]),
    "AVX512-BF16": ({"avx512_bf16"}, []),
}
WIDTH = 64  # filters, what the kernels are written for


class HalfSquaredError:
    """(ILR, HR) → ½‖HR − output‖², summed over pixels and averaged over patches, with its gradients.

    net: a VDSR of 64 filters and at least 3 layers; its parameters are read at each call.
    Called with (B, 1, H, W) float32 luma in [0, 1]; features, weights and the features' gradients are bf16, as under
    autocast, sums float32. The patches are dealt out to PyTorch's number of threads, each of which keeps room for one
    patch's features. One call at a time, and none in a process forked after one. Raises InputError where the kernels
    cannot be had (see `missing`), ValueError for planes of other shapes or types.
    """

    def __init__(self, net: VDSR) -> None:
        if reason := missing(net):
            raise InputError(f"no kernels of our own here: {reason}")
        self.net = net
        self.kernels = _library()[1]
        self.packed = torch.zeros(self.kernels.vdsr_packed(net.depth - 2), dtype=torch.bfloat16)

    def __call__(self, ilr_B1HW: Tensor, hr_B1HW: Tensor) -> Tensor:
        loss: Tensor = _Step.apply(self, ilr_B1HW, hr_B1HW, *self.net.parameters())  # type: ignore[no-untyped-call]
        return loss

    def run(self, ilr_B1HW: Tensor, hr_B1HW: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss, a scalar, and its gradients in the order and shapes of the parameters."""
        planes = (ilr_B1HW.contiguous(), hr_B1HW.contiguous())
        batch, channels, height, width = ilr_B1HW.shape
        if hr_B1HW.shape != ilr_B1HW.shape or channels != 1 or not batch:
            raise ValueError(f"ILR {tuple(ilr_B1HW.shape)} and HR {tuple(hr_B1HW.shape)} are not both (B, 1, H, W)")
        if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in (*planes, *parameters)):
            raise ValueError("the kernels are for float32 tensors on the CPU")
        layers = self.net.depth - 2
        flat = torch.cat([_taps_before_inputs(p).reshape(-1) for p in parameters])
        self.kernels.vdsr_pack(flat.data_ptr(), layers, self.packed.data_ptr())

        threads = min(batch, torch.get_num_threads())
        grads, squares = flat.new_zeros(threads, len(flat)), torch.zeros(threads, dtype=torch.float64)
        self.kernels.vdsr_step(
            *(plane.data_ptr() for plane in planes),
            *(batch, height, width, layers, self.net.residual, 1 / batch),
            *(self.packed.data_ptr(), flat.data_ptr(), threads, grads.data_ptr(), squares.data_ptr()),
        )
        if (squares < 0).any():
            raise MemoryError("kernels: no memory for the features of a patch")
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
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, None, None, *torch._foreach_mul(ctx.grads, float(grad_outputs[0]))


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
    return None if _possible() else "this CPU has no avx512_bf16"


def instructions() -> str:
    """What the kernels are made of here: AMX's tiles, or AVX512-BF16's dot products where those cannot be had.

    Raises what `missing` puts into words where there are no kernels.
    """
    return _library()[0]


def _possible() -> list[str]:
    """What this CPU has of the instructions."""
    words = _features()
    return [name for name, (needed, _) in INSTRUCTIONS.items() if needed <= words]


@cache
def _features() -> frozenset[str]:
    return frozenset(Path("/proc/cpuinfo").read_text().split())


@cache
def _uncompiled() -> str | None:
    """Why they could not be compiled or started."""
    try:
        _library()
    except (OSError, InputError, subprocess.SubprocessError) as error:
        return " ".join(str(getattr(error, "stderr", None) or error).split())[:200]
    return None


@cache
def _library() -> tuple[str, ctypes.CDLL]:
    """The fastest kernels that CPU, compiler and system have, with the instructions that they are made of.

    Raises OSError, InputError or CalledProcessError where there are none.
    """
    *better, last = _possible()
    for name in better:
        try:
            return name, _built(name)
        except (OSError, InputError, subprocess.SubprocessError):
            continue
    return last, _built(last)


def _built(name: str) -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX", "")) or [*filter(shutil.which, ("c++", "g++", "clang++"))][:1]
    if not compiler:
        raise FileNotFoundError("there is no C++ compiler: install g++, or set CXX")
    command = [*compiler, *FLAGS, *INSTRUCTIONS[name][1], str(SOURCE)]
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(command[:-1]).encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vdsr"
            library = _loaded(command, folder / f"kernels-{digest}.so")
        except (OSError, RuntimeError, InputError):  # no home, or none that can be written or code loaded from
            library = _loaded(command, Path(elsewhere) / "kernels.so")
    pointer, whole_number = ctypes.c_void_p, ctypes.c_int
    library.vdsr_packed.argtypes, library.vdsr_packed.restype = [whole_number], ctypes.c_int64
    library.vdsr_pack.argtypes, library.vdsr_pack.restype = [pointer, whole_number, pointer], None
    arrays, sizes = [pointer] * 2, [whole_number] * 5
    library.vdsr_step.argtypes = arrays + sizes + [ctypes.c_float] + arrays + [whole_number] + arrays  # type: ignore[operator]
    library.vdsr_step.restype = None
    if library.vdsr_permit():
        raise OSError("the system does not grant AMX's tiles")
    return library


def _loaded(command: Sequence[str], path: Path) -> ctypes.CDLL:
    """The library at `path`, made by `command` if it is not there."""
    if not path.exists():
        with whole(path) as temporary:
            subprocess.run([*command, "-o", str(temporary)], check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(path))
