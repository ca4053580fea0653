"""How a run's checkpoints are written, and found again; apart from `vdsr.checkpoints`, which needs no Lightning."""

import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from vdsr import checkpoints

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # what a run continues from, and the one before it


class Whole(TorchCheckpointIO):
    """Writes to a temporary name, then renames: a full disk or a kill leaves the checkpoint before it.

    Of the last checkpoint the one before is kept too.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave the name without the bytes
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def newest(folder: Path, mend: bool) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint of a run that is whole, by its checksums, and its contents; None if there is none.

    mend: rename damaged ones out of the way, and say so. Raises InputError for one of somebody else's.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        if complaint := _damage(path):
            if mend:
                aside = path.with_name(f"{name}.damaged")
                os.replace(path, aside)
                log.warning("%s is damaged (%s): set aside as %s", path, complaint, aside.name)
            continue
        return path, checkpoints.read(path)
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes; torch.load itself does not compare the checksums that it writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # on damaged bytes zipfile raises nearly anything
        return " ".join(str(error).split())[:100]
    return f"{damaged} differs from its checksum" if damaged else None
