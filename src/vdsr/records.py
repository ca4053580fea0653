"""One JSON record per run, and what is made from records. Knows no tracker and no trainer."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vdsr.errors import InputError

FORMAT = 1
FILE = "record.json"
LEFT_BICUBIC = 0.02  # dB above bicubic where it is trained; below it a network is its input
PACKAGES = (
    "vdsr",
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "webdataset",
    "wandb",
    "numpy",
    "pillow",
)

Record = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON to a temporary name, then rename. Not-a-number and infinity become null."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Record:
    """A run's record. Raises InputError when it is cut off, no record, or of a newer format."""
    try:
        record = json.loads(path.read_text(), parse_constant=lambda _: None)  # NaN is no figure
        fits = int(record["format"]) <= FORMAT
        if not isinstance(record["config"], dict):
            raise TypeError("config")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no run record, or a damaged one ({type(error).__name__}); run again") from None
    if not fits:
        raise InputError(f"{path}: format {record['format']} is newer than this version reads ({FORMAT}); update")
    return dict(record)


def read_all(folder: Path) -> list[Record]:
    """Every run record below a folder, in the order of their paths. Raises InputError for a damaged one."""
    return [read(path) for path in sorted(folder.rglob(FILE))]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two nested configurations: {key: (old, new)}."""
    a, b = flatten(old), flatten(new)
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def swept(records: Sequence[Record]) -> list[str]:
    """The configuration keys that were overridden with different values in these runs, in their order."""
    values: dict[str, set[str]] = {}
    for record in records:
        for override in record["overrides"]:
            values.setdefault(override.split("=", 1)[0].lstrip("+"), set())
    for key in values:
        values[key] = {json.dumps(setting(record, key), default=str) for record in records}
    return [key for key, different in values.items() if len(different) > 1]


def setting(record: Record, key: str) -> Any:
    """What a run has at a dotted key: a value, or of a group (data=train291) the name of what was chosen."""
    value = lookup(record["config"], key)
    if not isinstance(value, Mapping):
        return value
    pairs = (override.lstrip("+").split("=", 1) for override in record["overrides"])
    return next((chosen for name, chosen in pairs if name == key), None)


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return None
        config = config[part]
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys; an empty mapping stays a value."""
    if not isinstance(config, Mapping) or not config:
        return {prefix.rstrip("."): config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat


def order(value: Any) -> tuple[bool, float, str]:
    """Sorts swept values: numbers by size, then everything else by its text."""
    number = isinstance(value, (int, float))
    return not number, float(value) if number else 0.0, str(value)


def provenance() -> Record:
    """Commit and versions of this code."""
    return {"commit": _commit(), "versions": _versions()}


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("-modified" if changes.stdout.strip() else "")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content
