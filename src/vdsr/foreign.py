"""Other people's VDSR weights → a network of ours; nothing that is in their files is executed.

Read are MATLAB files with cells `weight` and `bias` (as the authors' release has them), PyTorch state dicts and
safetensors. Layers are told by shape and name: one convolution from 1 channel, one to 1 channel, and those between
in the order of the numbers in their names.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vdsr import checkpoints
from vdsr.errors import InputError
from vdsr.net import VDSR

NESTED = ("state_dict", "model", "params", "net")  # where training scripts put the weights
EXPECTED = "expected are 3×3 convolutions from 1 channel of luma to 1, of the same width between"


class Layer(NamedTuple):
    """One convolution: (out, in, 3, 3) kernels that are correlated with their input, and (out,) biases."""

    weight: Tensor
    bias: Tensor


def load(path: Path, peak: float = 1.0, residual: bool = True) -> VDSR:
    """The network of a `.mat`, `.pth`, `.pt` or `.safetensors` file; depth and width as its shapes say.

    peak: the largest luma that the weights were trained on, 1 or 255. Between ReLUs a network scales with its
    input, all but its biases: those are divided by the peak, and nothing else changes.
    residual: whether the input is added to the output; no file says so.
    Raises InputError, naming file and remedy, when it is missing, damaged, holds a whole Python object in place
    of its weights, or is no VDSR.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    if not (isinstance(peak, (int, float)) and peak > 0):
        raise InputError(f"peak={peak}: give 1 or 255, the largest luma that the weights were trained on")
    if path.suffix == ".mat":
        layers = _from_cells(path)
    elif path.suffix in (".pth", ".pt", ".ckpt"):
        layers = _from_state(path, _unnested(path, checkpoints.unpickle(path)))
    elif path.suffix == ".safetensors":
        layers = _from_state(path, _safetensors(path))
    else:
        raise InputError(f"{path}: give a .mat, .pth, .pt or .safetensors file")
    _check(path, layers)
    net = VDSR(len(layers), layers[0].weight.shape[0], residual)
    convolutions = [module for module in net.body if isinstance(module, torch.nn.Conv2d)]
    with torch.no_grad():
        for convolution, (weight, bias) in zip(convolutions, layers, strict=True):
            assert convolution.bias is not None
            convolution.weight.copy_(weight)
            convolution.bias.copy_(bias / peak)
    return net.eval()


def _check(path: Path, layers: Sequence[Layer]) -> None:
    """Raises InputError unless the layers make up a VDSR with finite weights."""
    width = layers[0].weight.shape[0] if layers else 0
    shapes = [tuple(layer.weight.shape) for layer in layers]
    whole = [(width, 1, 3, 3), *[(width, width, 3, 3)] * (len(layers) - 2), (1, width, 3, 3)]
    if len(layers) < 2 or shapes != whole:
        wrong = next(
            (f"layer {n + 1} is {a}" for n, (a, b) in enumerate(zip(shapes, whole, strict=False)) if a != b), ""
        )
        raise InputError(f"{path}: {len(layers)} convolutions{wrong and ', ' + wrong}; {EXPECTED}")
    for number, (weight, bias) in enumerate(layers, 1):
        if bias.shape != weight.shape[:1]:
            raise InputError(f"{path}: layer {number} has {bias.numel()} biases for {weight.shape[0]} filters")
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise InputError(f"{path}: layer {number} holds values that are not finite")


# --- MATLAB ---


def _from_cells(path: Path) -> list[Layer]:
    """Cells `weight` (HWIO, correlated as PyTorch's are) and `bias`, alone or in a struct such as `model`."""
    content = _read_mat(path)
    places = [content, *map(_fields, content.values())]
    found = next((place for place in places if "weight" in place), None)
    if found is None:
        there = ", ".join(content) or "nothing"
        raise InputError(f"{path}: has no cells 'weight' and 'bias', alone or in a struct (it has {there})")
    weights = [_kernels(path, cell) for cell in _cells(path, found["weight"])]
    biases = [_numbers(path, cell).ravel() for cell in _cells(path, found["bias"])] if "bias" in found else []
    if biases and len(biases) != len(weights):
        raise InputError(f"{path}: {len(weights)} cells of weights, but {len(biases)} of biases")
    return [
        Layer(weight, torch.from_numpy(biases[n]) if biases and biases[n].size else torch.zeros(len(weight)))
        for n, weight in enumerate(weights)
    ]


def _read_mat(path: Path) -> dict[str, Any]:
    """A MATLAB file's variables."""
    from scipy.io import loadmat  # half a second of import that only this needs

    try:
        # not simplified: that would squeeze 3×3×1×64 and 3×3×64×1 into the same shape
        content = loadmat(path)
    except NotImplementedError:  # scipy's answer to HDF5
        advice = "save it in MATLAB as save('x.mat', 'model', '-v7')"
        raise InputError(f"{path}: is a version 7.3 file (HDF5), which is not read; {advice}") from None
    except Exception as error:  # on damaged bytes it raises nearly anything
        raise InputError(f"{path}: damaged or no MATLAB file ({_one_line(error)})") from None
    return {name: value for name, value in content.items() if not name.startswith("__")}


def _fields(value: Any) -> dict[str, Any]:
    """What a struct holds, by name; nothing for another variable."""
    if not (isinstance(value, np.ndarray) and value.dtype.names and value.shape == (1, 1)):
        return {}
    return {name: value[0, 0][name] for name in value.dtype.names}


def _cells(path: Path, cells: Any) -> list[Any]:
    """A cell array, of one row or one column, as a list."""
    if not (isinstance(cells, np.ndarray) and cells.dtype == object):
        raise InputError(f"{path}: 'weight' and 'bias' are no cell arrays; {EXPECTED}")
    return list(cells.ravel())


def _kernels(path: Path, cell: Any) -> Tensor:
    """(height, width, in, out) → (out, in, height, width); MATLAB drops trailing dimensions of 1."""
    values = _numbers(path, cell)
    if values.ndim > 4:
        raise InputError(f"{path}: a cell of {values.ndim} dimensions; {EXPECTED}")
    values = values.reshape(*values.shape, *[1] * (4 - values.ndim))
    return torch.from_numpy(np.ascontiguousarray(values.transpose(3, 2, 0, 1)))


def _numbers(path: Path, cell: Any) -> Any:
    values = np.asarray(cell)
    if values.dtype.kind != "f":
        raise InputError(f"{path}: a cell holds {values.dtype}, not floating-point numbers")
    return values.astype(np.float32)


# --- PyTorch ---


def _from_state(path: Path, state: Mapping[str, Tensor]) -> list[Layer]:
    """Convolutions of a state dict, whatever its names begin with, in the order they are run."""
    weights = {name.removesuffix("weight"): t.float() for name, t in state.items() if name.endswith("weight")}
    biases = {name.removesuffix("bias"): t.float() for name, t in state.items() if name.endswith("bias")}
    strange = [name for name, t in state.items() if not name.endswith(("weight", "bias"))]
    strange += [f"{name}weight" for name, t in weights.items() if t.ndim != 4]
    strange += [f"{name}bias" for name in biases if name not in weights]
    if strange:
        raise InputError(f"{path}: holds {strange[0]}, which is no convolution's; {EXPECTED}")
    first = [name for name, t in weights.items() if t.shape[1] == 1 and t.shape[0] != 1]
    last = [name for name, t in weights.items() if t.shape[0] == 1 and t.shape[1] != 1]
    if len(first) != 1 or len(last) != 1:
        shapes = sorted({f"{t.shape[1]} → {t.shape[0]}" for t in weights.values()})
        raise InputError(f"{path}: convolutions of {', '.join(shapes) or 'none'} channels; {EXPECTED}")
    between = [name for name in weights if name not in (*first, *last)]
    if len({re.sub(r"\d+", "#", name) for name in between}) > 1:
        raise InputError(f"{path}: the order of its layers cannot be told from names such as {between[0]}weight")
    order = [*first, *sorted(between, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]), *last]
    return [Layer(weights[n], biases.get(n, torch.zeros(len(weights[n])))) for n in order]


def _unnested(path: Path, content: Any) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint. Raises InputError where there is none."""
    while isinstance(content, Mapping):
        if content and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in content.items()):
            return content
        content = next((content[key] for key in NESTED if key in content), None)
    raise InputError(f"{path}: holds no state dict; save one with torch.save(model.state_dict(), FILE)")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or no safetensors file ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
