"""Signals end a training in order, and it goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(frequent):
    return [*frequent, "logger=none", "trainer.max_steps=16", "trainer.validations=2"]


@pytest.fixture(scope="module")
def weights(attempts, frequent, tmp_path_factory):
    """What a run ends with that nobody has interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    short = ["logger=none", "trainer.max_steps=16", "trainer.validations=2"]
    assert attempts(*frequent, *short, f"hydra.run.dir={folder}").statuses == [0]
    return load_file(folder / "weights.safetensors")


def record(folder):
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize(
    ("number", "moment", "status", "said", "step"),
    [
        (signal.SIGUSR1, "before an update", 85, "SIGUSR1: saved at step 5 in", 5),
        (signal.SIGTERM, "before an update", 143, "SIGTERM: saved at step 5 in", 5),
        (signal.SIGTERM, "validating an image", 143, "SIGTERM: leaving a validation; the last checkpoint stands", 6),
    ],
)
def test_a_signal_saves_and_the_run_goes_on(attempts, arguments, weights, tmp_path, number, moment, status, said, step):
    interrupts = [(number, moment, {"before an update": 5}.get(moment, 1), 0)]
    arguments = [*arguments, f"hydra.run.dir={tmp_path}"]
    left = attempts(*arguments, interrupts=interrupts)
    assert left.statuses == [status], left.out
    assert said in left.out
    assert "Traceback" not in left.out
    assert record(tmp_path)["status"] == "preempted"
    done = attempts(*arguments)
    assert done.statuses == [0]
    assert f"continuing at step {step} from" in done.out
    assert record(tmp_path)["status"] == "finished"
    assert [point["step"] for point in record(tmp_path)["curve"]] == list(range(1, 17))
    assert [point["step"] for point in record(tmp_path)["validations"]] == [8, 16]
    end = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(end[name], weights[name]) for name in weights)


@pytest.mark.parametrize("moment", ["before an update", "validating an image"])
def test_ranks_leave_together_when_one_is_asked_to(attempts, arguments, tmp_path, moment):
    interrupts = [(signal.SIGUSR1, moment, 1, 1)]
    left = attempts(*arguments, f"hydra.run.dir={tmp_path}", ranks=2, interrupts=interrupts)
    assert left.statuses == [85, 85], left.out
    assert left.out.count("SIGUSR1: ") == 1
    assert record(tmp_path)["status"] == "preempted"


def test_what_a_preempted_run_had_recorded_stays(attempts, arguments, tmp_path):
    """The next attempt may be asked to leave before it comes to train."""
    arguments = [*arguments, f"hydra.run.dir={tmp_path}"]
    assert attempts(*arguments, interrupts=[(signal.SIGUSR1, "after an update", 10, 0)]).statuses == [85]
    before = record(tmp_path)
    assert len(before["curve"]) == 10
    left = attempts(*arguments, interrupts=[(signal.SIGTERM, "loading images", 1, 0)])
    assert (left.statuses, left.out) == ([143], "SIGTERM: leaving, with nothing to save\n")
    left = attempts(*arguments, interrupts=[(signal.SIGTERM, "loading a batch", 1, 0)])
    assert left.statuses == [143]
    assert record(tmp_path) == before


def test_sigterm_wins(attempts, arguments, tmp_path):
    both = [(signal.SIGTERM, "before a step", 3, 0), (signal.SIGUSR1, "before an update", 3, 0)]
    assert attempts(*arguments, f"hydra.run.dir={tmp_path}", interrupts=both).statuses == [143]


def test_a_second_control_c_ends_it_at_once(attempts, arguments, tmp_path):
    twice = [(signal.SIGINT, "before a step", 3, 0), (signal.SIGINT, "closing the trackers", 1, 0)]
    assert attempts(*arguments, f"hydra.run.dir={tmp_path}", interrupts=twice).statuses == [-signal.SIGINT]
    assert record(tmp_path)["status"] == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the handler in /proc")
def test_a_signal_during_the_imports(arguments, tmp_path):
    process = subprocess.Popen(
        [sys.executable, ROOT / "src" / "train.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not has_handler(process.pid, signal.SIGUSR1):
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (85, "SIGUSR1: leaving, with nothing to save\n")
    assert not (tmp_path / "run" / "record.json").exists()


def has_handler(pid, number):
    (line,) = (text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("SigCgt"))
    return int(line.split()[1], 16) >> (number - 1) & 1


# --- W&B ---


def inspect(folder):
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", path]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_the_wandb_run_is_marked_preempting(attempts, arguments, tmp_path):
    arguments = [*arguments, "logger=wandb", f"hydra.run.dir={tmp_path}"]
    assert attempts(*arguments, interrupts=[(signal.SIGUSR1, "before a step", 3, 0)]).statuses == [85]
    found = inspect(tmp_path)
    assert [row["type"] for row in found].count("preempting") == 1
    assert [row["exit"]["exit_code"] for row in found if row["type"] == "exit"] == [85]


def test_a_training_outlives_wandb_s_own_process(attempts, arguments, tmp_path):
    """A signal to a whole job reaches that too."""
    arguments = [*arguments, "logger=wandb", f"hydra.run.dir={tmp_path}"]
    done = attempts(*arguments, interrupts=[(signal.SIGKILL, "before a step", 5, "wandb")])
    assert done.statuses == [0], done.out
    assert done.out.count("W&B has gone (") == 1
    assert "the run goes on without it" in done.out
    assert "Traceback" not in done.out
    assert record(tmp_path)["status"] == "finished"


# --- one folder, one run ---


def test_two_jobs_on_one_folder(attempts, arguments, tmp_path):
    arguments = [*arguments, f"hydra.run.dir={tmp_path}"]
    holder = """
import sys
from pathlib import Path
from vdsr.claim import Claim
claim = Claim(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", holder, tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with first:
        assert first.stdout.readline() == "held\n"
        second = attempts(*arguments)
        assert second.statuses == [1]
        (line,) = second.out.splitlines()
        assert line.startswith("error: ")
        assert f"is in use by process {first.pid} on" in line
        assert line.endswith(": wait until it ends, stop it, or set name=…")
        assert not (tmp_path / "record.json").exists()
        first.kill()
    assert attempts(*arguments).statuses == [0]


def test_a_later_attempt_of_a_slurm_job_takes_over(attempts, arguments, tmp_path, monkeypatch):
    """And the orphan of the one before ends without writing."""
    from vdsr import claim

    monkeypatch.setattr(claim, "PATIENCE", 0.1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    tmp_path.joinpath("run").mkdir()
    orphan = claim.Claim(tmp_path / "run")
    orphan.check()
    for count in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        if count == "0":
            with pytest.raises(claim.InputError, match=r"in use by process \d+ on .* \(Slurm job 7\)"):
                claim.Claim(tmp_path / "run")
        else:
            later = claim.Claim(tmp_path / "run")
    later.check()
    with pytest.raises(claim.InputError, match="taken over by a later attempt of this job; this one ends"):
        orphan.check()
    orphan.release()


# --- launchers ---


def test_slurm_s_tasks_must_be_the_ranks(attempts, arguments, tmp_path):
    slurm = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "training", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    done = attempts(*arguments, f"hydra.run.dir={tmp_path}", environment=slurm)
    assert done.statuses == [1]
    assert done.out == (
        "error: Slurm started 4 tasks, but trainer.devices=1 × trainer.num_nodes=1 is 1: "
        "set them to the job's tasks a node and its nodes\n"
    )


TORCHRUN = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import attempts
if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
    attempts.interrupt(signal.SIGKILL, "before a step", 8)
runpy.run_path(attempts.SCRIPT, run_name="__main__")
"""


@pytest.mark.slow
def test_torchrun_starts_the_ranks_again_when_one_dies(arguments, tmp_path):
    (tmp_path / "train.py").write_text(TORCHRUN)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run(
        [*torchrun, tmp_path / "train.py", *arguments, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing at step 6 from" in done.stdout + done.stderr
    assert record(tmp_path / "run")["status"] == "finished"
    assert [point["step"] for point in record(tmp_path / "run")["curve"]] == list(range(1, 17))
