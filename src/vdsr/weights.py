"""Weights and checkpoints: written with what rebuilds the network, read without executing anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor, nn

from vdsr import checkpoints
from vdsr import net as networks
from vdsr.checkpoints import SPEC
from vdsr.errors import InputError
from vdsr.files import whole
from vdsr.resize import parse_scale

FORMAT = 1
FOLDER = Path(__file__).parents[2] / "weights"  # the networks that come with the repository
DEFAULT = "vdsr-d20-x234"


def save(net: nn.Module, path: Path, **metadata: Any) -> Path:
    """Write float32 weights and their metadata (spec, format, whatever else is given) as safetensors.

    Atomic: written to a temporary name, then renamed. Raises InputError when there is no space.
    """
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in net.state_dict().items()}
    text = {"format": str(FORMAT), SPEC: json.dumps(net.spec())}  # type: ignore[operator]
    text |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    with whole(path) as temporary:
        temporary.write_bytes(serialised(tensors, metadata=text))
    return path


def names() -> list[str]:
    """The networks that come with the repository, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(name: str | Path) -> Path:
    """The file of a network that comes with the repository, by its name; any other file by its path.

    Raises InputError for a name that there is not, with those that there are.
    """
    path = Path(name).expanduser()
    if path.suffix or len(path.parts) > 1 or path.is_file():
        return path
    if path.name not in names():
        there = ", ".join(names()) or "none yet"
        raise InputError(f"no network named '{name}' (there are: {there}); give weights=FILE for one of yours")
    return FOLDER / f"{name}.safetensors"


def load(path: Path) -> nn.Module:
    """Rebuild a network from `weights.safetensors` or a checkpoint (.ckpt) of a run.

    Nothing in the file is executed. Raises InputError, naming file and remedy, when it is missing,
    truncated, of another type or version, or does not fit the network that it names.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    spec, tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    try:
        net = networks.build(spec)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    try:
        net.load_state_dict(dict(tensors))
    except RuntimeError as error:
        complaint = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: does not fit the {spec.get('name')} it names: {complaint}") from None
    return net.eval()


def trained_at(path: Path) -> tuple[float, ...]:
    """The scales that a `weights.safetensors` of a run was trained at; none where it is not said, as in a checkpoint.

    Raises InputError for a file that cannot be read.
    """
    if path.suffix != ".safetensors":
        return ()
    try:
        with safe_open(path, framework="pt") as file:
            scales = json.loads((file.metadata() or {}).get("scales", "[]"))
        return tuple(sorted(parse_scale(scale) for scale in scales))
    except (SafetensorError, OSError, ValueError, TypeError, InputError):
        raise InputError(f"{path}: its scales cannot be read: not weights of this project") from None


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or no safetensors file ({error})") from None
    if SPEC not in metadata:
        raise InputError(f"{path}: carries no network description: not weights of this project")
    try:
        newer, spec = int(metadata.get("format", 0)) > FORMAT, json.loads(metadata[SPEC])
    except ValueError:
        raise InputError(f"{path}: its description cannot be read: not weights of this project") from None
    if newer:
        raise InputError(f"{path}: format {metadata['format']} is newer than this version reads ({FORMAT}); update")
    return spec, tensors


def _read_checkpoint(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    checkpoint = checkpoints.read(path)
    prefix = "net."
    state = checkpoint["state_dict"]
    return checkpoint[SPEC], {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}
