"""A Slurm cluster of four pretended nodes for these tests, with jobs to send to it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("cluster.sh")
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare")
PATIENCE = 600  # seconds for what takes ten on an idle machine


def missing():
    """Why there can be no cluster here, or None."""
    if absent := [name for name in NEEDED if not shutil.which(name)]:
        return f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge iproute2"
    if os.geteuid() != 0:
        return "a cluster of pretended nodes needs root"
    if subprocess.run(
        ["unshare", "--uts", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True
    ).returncode:
        return "no namespaces for pretended nodes (an unprivileged container)"
    return None


def until(condition, what, over=lambda: False):
    """Wait until `condition()` is true, and return it. It never will be once `over()` is."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain: {what()}"
        assert not over(), what()
        time.sleep(0.3)
    return found


class Cluster:
    """Nodes node1 to node4 with 4 CPUs and 2 pretended GPUs each; partitions normal, grace (preempted
    two minutes after SIGTERM) and urgent."""

    def __init__(self, folder):
        self.folder = folder
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "VDSR_VENV": str(Path(sys.prefix)),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command, cwd=None, check=True):
        """A command on the login node; its stdout."""
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, env=self.env, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout if check else done

    until = staticmethod(until)

    def power(self, state, node):
        self.run(CLUSTER, f"power-{state}", self.folder, node)

    def start(self, *command, cwd):
        """A command on the login node that goes on in the background; what it says goes to `login.log`."""
        with (cwd / "login.log").open("w") as log:
            words = [str(word) for word in command]
            return subprocess.Popen(words, cwd=cwd, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def submit(self, cwd, *words):
        """`sbatch WORDS…` in `cwd`."""
        return self.job(cwd, self.run("sbatch", *words, cwd=cwd))

    def job(self, cwd, text):
        """The job that `text` names as `job NUMBER`."""
        return Job(self, cwd, re.search(r"job (\d+)", text)[1])


class Job:
    def __init__(self, cluster, cwd, number):
        self.cluster, self.cwd, self.number = cluster, cwd, number

    def show(self):
        """What Slurm says of it: a dictionary for the job, or one for each task of an array."""
        text = self.cluster.run("scontrol", "show", "job", "-o", self.number)
        tasks = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
        return tasks if "ArrayJobId" in tasks[0] else tasks[0]

    def said(self, words):
        """Wait for words in its log."""
        until(lambda: words in self.log(), self.log)

    def log(self):
        return "\n".join(path.read_text() for path in sorted(self.cwd.glob(f"*-{self.number}*.out")))

    def until(self, *states):
        """Wait for one of these states, of every task if it is an array."""

        def reached():
            shown = self.show()
            return all(task["JobState"] in states for task in (shown if isinstance(shown, list) else [shown]))

        until(reached, lambda: f"{self.show()}\n{self.log()}")
        return self

    def completes(self):
        """Wait for its end, which must be COMPLETED; what Slurm says of it then."""
        self.until("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        shown = self.show()
        for task in shown if isinstance(shown, list) else [shown]:
            assert task["JobState"] == "COMPLETED", self.log()
        return shown


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if reason := missing():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    made = Cluster(folder := tmp_path_factory.mktemp("cluster"))
    try:
        made.run(CLUSTER, "up", folder, 4)
        yield made
    finally:
        made.run("scancel", "--user=root", check=False)
        made.run(CLUSTER, "down", folder)


class Training:
    """A tiny training in a folder of its own: how to start it, and what came of it."""

    def __init__(self, cluster, cwd, data):
        self.cluster, self.cwd, self.job = cluster, cwd, None
        self.overrides = [
            "+experiment=smoke",
            "logger=none",
            "trainer.accelerator=cpu",
            "trainer.precision=32-true",
            "trainer.max_steps=600",
            "trainer.checkpoint_every=50",
            f"paths.data={data}",
            "data=train291",  # by name only: small pictures of our own
        ]

    def submit(self, *options):
        job = self.cluster.submit(self.cwd, "--cpus-per-task=1", *options, ROOT / "slurm/train.sh", *self.overrides)
        self.job = job
        return job

    def under_way(self, folder="smoke/*"):
        """Wait until there is a checkpoint to go on from."""

        def folders():
            return [*self.cwd.glob(f"runs/{folder}/checkpoints/last.ckpt")]

        def said():  # by the job, or by what sent it out
            return "\n".join(path.read_text() for path in self.cwd.glob("*.*"))

        found = until(folders, said, lambda: self.job and self.job.show()["JobState"] in ("FAILED", "CANCELLED"))
        assert len(found) == 1

    def process(self, rank):
        """The process number of one of its ranks, as soon as there is one."""

        def found():
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    program, *arguments = (folder / "cmdline").read_bytes().split(b"\0")
                    if not program.endswith(b"python") or b"trainer.devices=1" not in arguments:
                        continue
                    environment = set((folder / "environ").read_bytes().split(b"\0"))
                    if {f"SLURM_JOB_ID={self.job.number}".encode(), f"SLURM_PROCID={rank}".encode()} <= environment:
                        return int(folder.name)
            return None

        return until(found, self.job.log)

    @property
    def run_dir(self):
        (folder,) = self.cwd.glob("runs/smoke/*")
        return folder

    def record(self):
        return json.loads((self.run_dir / "record.json").read_text())

    def weights(self):
        return load_file(self.run_dir / "weights.safetensors")


@pytest.fixture(scope="session")
def training(cluster, prepare, structured, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    prepare(data / "train291", {f"t{seed}": structured(seed) for seed in range(4)})
    prepare(data / "set5", {f"v{seed}": structured(seed, 60, 71) for seed in (10, 11)})
    return lambda: Training(cluster, tmp_path_factory.mktemp("training"), data)
