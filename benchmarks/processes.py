"""What only a process of its own shows: start-up, preparing a set, two ranks on a core each."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


def cpu_seconds(*arguments: str, cwd: Path) -> float:
    """CPU time, of all threads and children, that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=cwd, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def help_seconds(folder: Path) -> float:
    return min(cpu_seconds(str(ROOT / "src/train.py"), "--help", cwd=folder) for _ in range(3))


def first_step_seconds(folder: Path) -> float:
    """CPU time from the start of `src/train.py` to the end of its first step, embedded images prepared."""
    train(folder, "first", "trainer.max_steps=1", "trainer.validations=1", "data.val_scales=[4]")
    return float(record(folder, "first")["cpu_seconds_to_first_step"])


def train(folder: Path, name: str, *overrides: str) -> None:
    run = [str(ROOT / "src/train.py"), f"name={name}", "logger=none", f"hydra.run.dir=runs/{name}", *overrides]
    subprocess.run([sys.executable, *run], cwd=folder, check=True, capture_output=True)


def record(folder: Path, name: str) -> dict[str, float]:
    content: dict[str, float] = json.loads((folder / "runs" / name / "record.json").read_text())
    return content


def images(folder: Path, count: int, side: int = 256) -> Path:
    """A folder of `count` generated photographs-to-be: smoothed noise with edges."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:05}.png")
    return folder


def prepare(folder: Path, source: Path, name: str) -> float:
    """Wall seconds of `data_prep/prepare.py dataset=folder` on a folder of images."""
    began = time.perf_counter()
    arguments = ["dataset=folder", f"source={source}", f"name={name}", "overwrite=true"]
    subprocess.run(
        [sys.executable, str(ROOT / "data_prep/prepare.py"), *arguments], cwd=folder, check=True, capture_output=True
    )
    return time.perf_counter() - began


def patches_per_second(folder: Path, ranks: int, steps: int) -> float:
    """Training at D = 20 with 32 patches a rank, each rank pinned to a core of its own."""
    cores = sorted(os.sched_getaffinity(0))[:ranks]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    overrides = ["model.depth=20", f"data.batch_size={32 * ranks}", f"trainer.max_steps={steps}"]
    overrides += ["trainer.validations=1", "data.val_scales=[4]", "trainer.log_every_n_steps=4"]
    overrides += [f"trainer.devices={ranks}", "trainer.accelerator=cpu", f"trainer.checkpoint_every={steps}"]
    name = f"ranks{ranks}"
    run = [str(ROOT / "src/train.py"), f"name={name}", "logger=none", f"hydra.run.dir=runs/{name}", *overrides]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    launched = {"LOCAL_WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": "benchmark", "GROUP_RANK": "0"}
    processes = [
        subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, *run],
            cwd=folder,
            env=os.environ | shared | launched | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank, core in enumerate(cores)
    ]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise SystemExit(f"error: training on {ranks} ranks failed")
    return record(folder, name)["patches_per_second"]


def stream(folder: Path, count: int) -> tuple[float, float]:
    """Training from a stream of `count` generated images, each visited once: patches/s, and the peak memory in MB
    of its largest process."""
    name = f"stream{count}"
    prepare(folder, images(folder / f"images{count}", count, side=128), name)
    steps = count * 16 // 64  # data.stream.crops at each visit, in batches of 64
    overrides = ["data.mode=stream", f"data.train=data/{name}", "data.batch_size=64", "model.depth=2", "model.width=1"]
    overrides += [f"trainer.max_steps={steps}", "trainer.validations=1", "data.val_scales=[4]"]
    run = [str(ROOT / "src/train.py"), f"name={name}", "logger=none", f"hydra.run.dir=runs/{name}", *overrides]
    code = "import runpy, sys, measure; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    code += "; print(measure.peak_memory())"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code, *run], cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(record(folder, name)["patches_per_second"]), float(done.stdout.splitlines()[-1]) / 1e6
