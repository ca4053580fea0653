"""What happens before and after the jobs of `prepare.py -m parts=…`, where they are sent out."""

import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from data_prep import prepare, shares
from vdsr.cli import explain


class Index(Callback):
    """Refuses what jobs cannot share; puts their shards together."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with _errors_end():
            for request in prepare.requests(config):
                prepare.files_of(request)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        with _errors_end():
            for request in prepare.requests(config):
                data_dir = Path(config.paths.data)
                notes = prepare.notes_of(data_dir / request.name)
                prepare.prepare(request, data_dir, config.overwrite, shares.checked(notes, config.parts))
                shutil.rmtree(notes, ignore_errors=True)


@contextmanager
def _errors_end() -> Iterator[None]:
    """Where Hydra would only warn of an exception, end."""
    try:
        yield
    except Exception as error:
        complaint = explain(error)
        if complaint is None:
            traceback.print_exc()
        sys.exit(f"error: {complaint}" if complaint else 1)
