"""The scripts beyond the training itself: sweeps, agents, preparation, syncing."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


# --- without Slurm ---


def test_shellcheck_is_content():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-x", *SCRIPTS, *Path(__file__).parent.glob("*.sh")], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "common.sh"], ids=lambda path: path.name)
def test_help_works_anywhere(script, tmp_path):
    shown = subprocess.run([script, "--help"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert f"slurm/{script.name}" in shown
    assert max(map(len, shown.splitlines())) <= 125
    directives = re.findall(r"^#SBATCH (.*)$", script.read_text(), re.MULTILINE)
    assert all(f"  {directive}\n" in shown for directive in directives)


def test_a_job_is_not_started_by_hand(tmp_path):
    for name in ("train.sh", "agent.sh"):
        done = subprocess.run([ROOT / "slurm" / name], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: [^\n]*sbatch [^\n]*\n", done.stderr)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (["node2: task 1: Killed", "node1: task 0: Terminated"], 137),
        (["node2: tasks 4-7: Segmentation fault (core dumped)", "node1: tasks 0,2: Exited with exit code 143"], 139),
        (["node1: task 0: Aborted (core dumped)", "node2: task 1: Killed"], 134),
        (["node1: task 0: Exited with exit code 1", "node2: task 1: Killed"], 1),
        (["node1: tasks 0-3: Exited with exit code 85"], 85),
        (["Unable to create step"], 143),
    ],
)
def test_the_rank_that_ended_first_says_why(tmp_path, said, status):
    noise = "[rank0] srun: error: node1: task 9: Killed\nsrun: launch/slurm: _step_signal: Terminating StepId=9.1\n"
    (tmp_path / "said").write_text(noise + "".join(f"srun: error: {line}\n" for line in said))
    script = f"set -euo pipefail; source {ROOT}/slurm/common.sh; status=143; first_status said; echo $status"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == f"{status}\n"


@pytest.fixture
def stub(tmp_path):
    """A `python -m vdsr.upload` that notes what it is called with, and fails for runs named `…bad`, with status 0 as
    the true one does; the environment that finds it.
    """
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").touch()
    program = tmp_path / "venv/bin/python"
    log = f'echo "$@" >> {tmp_path}/calls'
    program.write_text(f'#!/bin/sh\n{log}\ncase $3 in *bad) ;; *) touch "$3/$(basename "$3"/*.wandb).synced";; esac\n')
    program.chmod(0o755)
    return os.environ | {"VDSR_VENV": str(tmp_path / "venv"), "PATH": f"{program.parent}:{os.environ['PATH']}"}


def offline_run(folder, name, size=1000, age=600):
    log = folder / "wandb" / name / f"run-{name.split('-')[-1]}.wandb"
    log.parent.mkdir(parents=True)
    log.write_bytes(bytes(size))
    os.utime(log, (log.stat().st_atime, log.stat().st_mtime - age))
    return log


def test_offline_runs_are_sent_once_and_in_order(stub, tmp_path):
    runs = tmp_path / "runs"
    offline_run(runs / "b", "offline-run-20261101_120000-x")
    offline_run(runs / "b", "offline-run-20261101_110000-x")  # the piece before it
    offline_run(runs / "a c", "offline-run-20261101_113000-y")
    offline_run(runs / "a c", "offline-run-20261101_100000-killed", size=7)
    offline_run(runs / "a c", "offline-run-20261101_100000-writing", age=0)
    log = offline_run(runs / "a c", "offline-run-20261101_090000-sent")
    log.with_suffix(".wandb.synced").touch()
    command = [ROOT / "slurm/sync.sh"]
    done = subprocess.run(command, cwd=tmp_path, env=stub, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sent = (tmp_path / "calls").read_text().splitlines()
    assert [line.rsplit("/", 1)[1] for line in sent] == [
        f"offline-run-20261101_{t}" for t in ("110000-x", "113000-y", "120000-x")
    ]
    assert all(line.startswith("-m vdsr.upload ") for line in sent)
    assert "empty, left out: runs/a c/wandb/offline-run-20261101_100000-killed" in done.stdout
    assert "left for later: runs/a c/wandb/offline-run-20261101_100000-writing" in done.stdout
    assert done.stdout.endswith("vdsr: 3 sent, 0 not\n")


def test_a_run_that_cannot_be_sent_is_named_and_the_others_are(stub, tmp_path):
    offline_run(tmp_path / "r", "offline-run-20261101_110000-bad")
    offline_run(tmp_path / "r", "offline-run-20261101_120000-good")
    offline_run(tmp_path / "r", "offline-run-20261101_130000-bad")  # would come before what is missing
    command = [ROOT / "slurm/sync.sh", tmp_path / "r"]
    done = subprocess.run(command, cwd=tmp_path, env=stub, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"not sent: {tmp_path}/r/wandb/offline-run-20261101_110000-bad" in done.stdout
    assert f"is not sent: {tmp_path}/r/wandb/offline-run-20261101_130000-bad" in done.stdout
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    assert done.stdout.endswith("vdsr: 1 sent, 2 not\n")
    done = subprocess.run([*command[:1], "none"], cwd=tmp_path, env=stub, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: there is no folder none\n")


# --- with Slurm ---


def table(folder):
    (path,) = folder.glob("runs/*/*/sweep.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_sweep_of_four_points_is_an_array(training, cluster):
    run = training()
    points = ["name=sweep", "trainer.max_steps=8", "model.depth=3,4", "seed=0,1"]
    command = [ROOT / "slurm/sweep.sh", "--gpus-per-node=0", "--cpus-per-task=1", *run.overrides, *points]
    job = cluster.job(run.cwd, cluster.run(*command, cwd=run.cwd))
    assert len(job.completes()) == 4
    rows = sorted((row["model.depth"], row["seed"], row["status"]) for row in table(run.cwd))
    assert rows == [(depth, seed, "finished") for depth in "34" for seed in "01"]


def test_a_mistyped_sweep_is_not_submitted(training, cluster):
    run = training()
    done = cluster.run(ROOT / "slurm/sweep.sh", "modle.depth=3,4", cwd=run.cwd, check=False)
    assert done.returncode == 1
    assert "did you mean 'model'?" in done.stderr
    assert "Submitted" not in done.stdout


@pytest.mark.slow
def test_the_launcher_sends_a_sweep_out_and_a_warned_point_goes_on(training, cluster):
    run = training()
    words = ["-m", "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"]
    launcher = cluster.start("python", ROOT / "src/train.py", *words, *run.overrides, "seed=0,1", cwd=run.cwd)
    run.under_way("smoke/*/*seed-1")
    job = cluster.job(run.cwd, cluster.run("squeue", "--noheader", "--format=job %F"))
    cluster.run("scancel", "--signal=USR1", f"{job.number}_1")
    assert launcher.wait() == 0
    assert {task["ArrayTaskId"]: task["Restarts"] for task in job.completes()} == {"0": "0", "1": "1"}
    assert [row["status"] for row in table(run.cwd)] == ["finished", "finished"]


def test_jobs_prepare_the_same_bytes_as_one_machine(cluster, noise, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(70):
        Image.fromarray(noise(number, 44, 41)).save(source / f"{number}.png")
    (source / "5.png").write_bytes((source / "5.png").read_bytes()[:300])
    words = ["python", ROOT / "data_prep/prepare.py", "dataset=folder", f"source={source}", "name=mine"]
    cluster.run(*words, "paths.data=one", cwd=tmp_path)
    resources = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1"]
    cluster.run(*words, "paths.data=many", "parts=3", *resources, "-m", cwd=tmp_path)
    one, many = ({path.name: path.read_bytes() for path in (tmp_path / d / "mine").iterdir()} for d in ("one", "many"))
    assert len(one) == 4
    assert one == many
    assert (
        sum(path.name[0].isdigit() and "_" in path.name for path in (tmp_path / "many/.jobs/.submitit").iterdir()) == 6
    )


def test_agents_ask_for_one_point_each_and_again_after_a_warning(cluster, stub, tmp_path):
    program = tmp_path / "venv/bin/wandb"
    program.write_text(f"""#!/bin/bash
echo "$SLURM_ARRAY_TASK_ID $*" >> {tmp_path}/calls
[[ $SLURM_ARRAY_TASK_ID == 2 && ! ${{SLURM_RESTART_COUNT:-}} ]] || exit 0
sleep 600 # the training: the agent's child
echo ended with $? >> {tmp_path}/calls
""")
    program.chmod(0o755)
    keys = ",".join(f"{key}={stub[key]}" for key in ("VDSR_VENV", "PATH"))
    job = cluster.submit(
        tmp_path,
        f"--export=ALL,{keys}",
        "--array=1-2",
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        ROOT / "slurm/agent.sh",
        "a/b/c",
    )
    calls = tmp_path / "calls"
    cluster.until(
        lambda: calls.exists() and "2 agent" in calls.read_text(),
        job.log,
        over=lambda: any(task["JobState"] == "FAILED" for task in job.show()),
    )
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job.number}_2")
    job.completes()
    lines = sorted(calls.read_text().splitlines())
    assert lines == ["1 agent --count 1 a/b/c", *["2 agent --count 1 a/b/c"] * 2, "ended with 138"]
