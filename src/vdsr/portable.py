"""Networks for other programs: ONNX and torch.export files of any batch and size, checked; ONNX Runtime as a backend.

What goes in and comes out is luma in [0, 1], float32 of (batch, 1, height, width): `ilr` → `hr`.
"""

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vdsr.errors import InputError
from vdsr.files import whole

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
SIZES = ((1, 1, 32, 48), (2, 1, 41, 41), (1, 1, 97, 64))  # to check at, none of them the one exported with
LARGEST_DIFFERENCE = 1e-4


def export(net: nn.Module, format: str, path: Path) -> float:
    """Write the network and compare it, as read again, with itself; returns the largest difference, of luma in [0, 1].

    format: onnx or torch_export. Raises InputError, and writes nothing, when they differ by more than 1e-4.
    """
    if format not in SUFFIXES:
        raise InputError(f"format={format}: there are {', '.join(SUFFIXES)}")
    if not list(net.parameters()):
        raise InputError("this network only hands on its input: there is nothing to export")
    with whole(path) as temporary:
        ready = temporary.with_suffix(SUFFIXES[format])  # torch looks at the suffix
        try:
            again = _write_onnx(net, ready) if format == "onnx" else _write_program(net, ready)
            found = difference(net, again)
            if not found <= LARGEST_DIFFERENCE:
                raise InputError(f"{path}: differs from the network by {found:.1g}, more than {LARGEST_DIFFERENCE:g}")
            ready.replace(temporary)
        finally:
            ready.unlink(missing_ok=True)
    return found


@torch.inference_mode()
def difference(net: nn.Module, other: Callable[[Tensor], Tensor]) -> float:
    """The largest difference between two networks over three sizes."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(size, generator=generator) for size in SIZES]
    return max(float((net(ilr) - other(ilr)).abs().max()) for ilr in inputs)


class OnnxRuntime(nn.Module):
    """A network run by ONNX Runtime on the CPU, in float32. Raises InputError where that is not installed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.radius = net.float(), net.radius
        with tempfile.TemporaryDirectory() as folder:
            self._run = _write_onnx(self.net, Path(folder) / "net.onnx")

    def forward(self, ilr: Tensor) -> Tensor:
        return self._run(ilr)


def _write_onnx(net: nn.Module, path: Path) -> Callable[[Tensor], Tensor]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(f"ONNX needs {package}: pip install -e '.[onnx]'") from None
    import onnxruntime

    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # each tells of its every step
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's of its own
        program = torch.onnx.export(
            net.eval(), (_example(),), dynamo=True, dynamic_shapes=(_dynamic(),), input_names=["ilr"],
            output_names=["hr"], verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(str(path))
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False  # it would keep the largest tile's memory
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ilr: torch.from_numpy(session.run(None, {"ilr": ilr.contiguous().numpy()})[0])


def _write_program(net: nn.Module, path: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net.eval(), (_example(),), dynamic_shapes=(_dynamic(),)), path)
        again: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return again


def _example() -> Tensor:
    return torch.rand(2, 1, 24, 36)


def _dynamic() -> dict[int, object]:
    names = {0: "batch", 2: "height", 3: "width"}
    return {axis: torch.export.Dim(name, min=1) for axis, name in names.items()}
