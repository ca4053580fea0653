import contextlib
import io
import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import pytest

ROOT = Path(__file__).parents[2]


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def command():
    """Run a script in `cwd` as its command line would; in this process, as importing torch takes its time."""

    def run(cwd, script, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(sys, "argv", [str(ROOT / script), *arguments]))
            stack.enter_context(mock.patch.dict(os.environ, COLUMNS="200"))
            stack.enter_context(_working_directory(cwd))
            stack.enter_context(_root_logger())
            # what a process of its own would hold; this one holds what all tests before have loaded
            stack.enter_context(mock.patch("vdsr.hardware.resident", return_value=300_000_000))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
                status = 0
            except SystemExit as stop:  # with a text Python prints it on stderr and exits with 1
                status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                if isinstance(stop.code, str):
                    err.write(stop.code + "\n")
        return Result(status, out.getvalue(), err.getvalue())

    return run


@contextlib.contextmanager
def _working_directory(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _root_logger():
    """Hydra configures it for a process of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture(scope="session")
def train(command, sets):
    """Train a tiny network for four steps: `train(cwd, *overrides)`."""
    small = ["+experiment=smoke", "logger=none", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    data = [f"data.train={sets.train}", f"data.val=[{sets.val}]"]

    def run(cwd, *overrides):
        return command(cwd, "src/train.py", *small, *data, *overrides)

    return run


@pytest.fixture(scope="session")
def run_dir(train, tmp_path_factory):
    """A finished run of depth 3 and width 8 at ×3."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = train(folder.parent, f"hydra.run.dir={folder}")
    assert result.status == 0, result.err
    return folder


def mounted(folder, options):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        reason = f"cannot mount a small file system here: {done.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of its own: `disk("size=100k")` → its folder."""
    folder = tmp_path / "disk"

    def mount(options):
        mounted(folder, options)
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def attempts(tmp_path_factory):
    """Attempts at a run: `attempts(*arguments, ranks=1, **order)` → statuses and what was printed; see attempts.py."""
    if sys.platform != "linux":
        pytest.skip("finds processes in /proc")
    folder = tmp_path_factory.mktemp("attempts")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "WANDB_MODE": "offline", "COLUMNS": "200"}
    environment |= {"WANDB_X_DISABLE_STATS": "true", "WANDB_DISABLE_GIT": "true"}  # which take seconds
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "integration" / "attempts.py"],
        cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def attempt(*arguments, ranks=1, **order):
        log = folder / "log"
        log.write_text("")
        order |= {"arguments": arguments, "ranks": ranks, "log": str(log)}
        process.stdin.write(json.dumps(order, default=str) + "\n")
        process.stdin.flush()
        return SimpleNamespace(statuses=json.loads(process.stdout.readline()), out=log.read_text())

    yield attempt
    process.stdin.close()
    process.stdout.close()
    process.wait()


@pytest.fixture(scope="session")
def frequent(sets):
    """A small training that logs each step, checkpoints every third and validates every eighth."""
    return [
        f"data.train={sets.train}", f"data.val=[{sets.val}]", f"paths.data={sets.root}",
        "data.scales=[2]", "data.patch=24", "data.batch_size=8", "model.depth=3", "model.width=8",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1",
        "trainer.max_steps=120", "trainer.validations=15", "trainer.checkpoint_every=3",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def measured():
    """`measured(script)`: how to start it so that it leaves its peak memory in ./peak, in bytes, on Linux.

    The resource usage of a child also counts what its parent held when it was started.
    """
    code = """
import atexit, pathlib, re, runpy, sys
status = pathlib.Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
atexit.register(lambda: pathlib.Path("peak").write_text(str(peak())) if status.exists() else None)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    return lambda script: [sys.executable, "-c", code, str(ROOT / script)]
