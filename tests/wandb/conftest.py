"""The true client against a server of our own, and commands that talk to it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

from tests.wandb.endpoint import KEY, Endpoint

ROOT = Path(__file__).parents[2]
PATIENCE = 200  # seconds for what takes ten on an idle machine


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.unreachable()
    assert not server.bugs, server.bugs[0]
    assert not server.unknown


@pytest.fixture
def environment(endpoint, tmp_path):
    """A user who has a key and nothing else, and for whom W&B leaves out what takes seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "VDSR_"))}
    home = tmp_path / "home"
    home.mkdir()
    return kept | {
        "HOME": str(home), "MPLCONFIGDIR": matplotlib.get_cachedir(), "NETRC": str(home / ".netrc"), "COLUMNS": "200",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "VDSR_VENV": sys.prefix,
        "WANDB_BASE_URL": endpoint.url, "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false", "WANDB_DISABLE_GIT": "true", "WANDB_X_DISABLE_STATS": "true",
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1", "PYTHONFAULTHANDLER": "1",
    }  # fmt: skip


@pytest.fixture
def small(sets):
    """A training of seconds that logs each step and validates every fifth."""
    return [
        f"paths.data={sets.root}", f"data.train={sets.train}", f"data.val=[{sets.val}]",
        "data.patch=24", "data.batch_size=4", "model.width=4", "trainer.accelerator=cpu",
        "trainer.precision=32-true", "trainer.max_steps=20", "trainer.validations=4", "trainer.log_every_n_steps=1",
        "trainer.checkpoint_every=5", "seed=1",
    ]  # fmt: skip


@pytest.fixture
def run(environment, tmp_path):
    """Run a command in an empty folder: `run("wandb", "sync", …)` → status, out."""

    def run(*command, **variables):
        env = environment | {name: str(value) for name, value in variables.items()}
        with tempfile.TemporaryFile("w+") as out:  # a pipe would be waited for while any grandchild holds it
            process = subprocess.Popen(
                [str(word) for word in command], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                status = f"still there after {PATIENCE} s"
                os.killpg(process.pid, signal.SIGABRT)  # they say where they are
                time.sleep(2)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            out.seek(0)
            return SimpleNamespace(status=status, out=out.read())

    return run


@pytest.fixture
def train(run, small, tmp_path):
    """Run src/train.py with `small` in the folder `run` of an empty one."""

    def train(*overrides, program=(ROOT / "src/train.py",), **variables):
        chosen = [*small, "model.depth=3", "data.scales=[2,3]", f"hydra.run.dir={tmp_path / 'run'}"]
        return run(sys.executable, *program, *chosen, *overrides, **variables)

    return train


@pytest.fixture
def sync(run, tmp_path):
    """slurm/sync.sh, for runs that have ended a while ago."""

    def sync(**variables):
        ago = time.time() - 600
        for log in tmp_path.rglob("run-*.wandb"):
            os.utime(log, (ago, ago))
        return run(ROOT / "slurm/sync.sh", tmp_path, **variables)

    return sync
