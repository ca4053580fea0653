"""What W&B costs a training: `python benchmarks/tracking.py [--out FILE]` (about 12 minutes on an idle machine).

`src/train.py`, as it stands, runs twice at the same time, each pinned to a core of its own with all that it starts:
once with `logger=none`, once sending to the server of tests/wandb. Then they change cores. That server is first well,
then it fails 30 % of what it is asked, goes away for 30 seconds a third of the way through, and for good at two thirds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.wandb.endpoint import KEY, Endpoint  # noqa: E402
from vdsr import hardware  # noqa: E402
from vdsr.records import provenance, write_json  # noqa: E402

STEPS = 1500


def misbehave(endpoint: Endpoint, over: threading.Event) -> None:
    """30 % errors; away for 30 seconds, then for good, by how far the training has come. Until `over`."""
    endpoint.faults = {"error": 0.3}
    for moment, away in ((1 / 3, 30.0), (2 / 3, 0.0)):
        while not over.is_set() and steps_at(endpoint) < moment * STEPS:
            time.sleep(0.2)
        endpoint.unreachable()
        if away:
            over.wait(away)
            endpoint.reachable()


def steps_at(endpoint: Endpoint) -> int:
    return max((row.get("trainer/global_step", 0) for run in endpoint.runs.values() for row in run.history), default=0)


def start(folder: Path, core: int, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
    words = [str(ROOT / "src/train.py"), f"hydra.run.dir={folder}", f"trainer.max_steps={STEPS}", *overrides]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, *words],
        cwd=folder.parent,
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
    )


class Cost(NamedTuple):
    """Of a training that is sent to a server, against one that is not; and the seconds that it then waits for it."""

    step: float
    whole: float
    wait: float


def side_by_side(folder: Path, cores: tuple[int, int], server: str) -> Cost:
    endpoint, over = Endpoint(), threading.Event()
    tracked, plain = folder / "tracked", folder / "plain"
    if server == "failing":
        threading.Thread(target=misbehave, args=(endpoint, over), daemon=True).start()
    sent = start(tracked, cores[0], "logger=wandb", WANDB_BASE_URL=endpoint.url, WANDB_API_KEY=KEY, NETRC="/dev/null")
    alone = start(plain, cores[1], "logger=none")
    ended: dict[str, float] = {}
    while len(ended) < 2:
        for name, process in (("tracked", sent), ("plain", alone)):
            if name not in ended and process.poll() is not None:
                ended[name] = time.time()
                if process.returncode:
                    raise SystemExit(f"error: the {name} training failed")
        time.sleep(0.05)
    if server == "failing" and endpoint.serving:
        raise SystemExit("error: the training ended before the server was gone")
    over.set()
    endpoint.unreachable()
    records = [json.loads((path / "record.json").read_text()) for path in (tracked, plain)]
    tracked_rate, plain_rate = (
        statistics.median(point["patches_per_second"] for point in record["curve"] if "patches_per_second" in point)
        for record in records
    )
    wait = ended["tracked"] - (tracked / "weights.safetensors").stat().st_mtime
    return Cost(plain_rate / tracked_rate, records[0]["seconds"] / records[1]["seconds"], wait)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    options = parser.parse_args()
    first, second = sorted(os.sched_getaffinity(0))[:2]
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        prepare = [sys.executable, str(ROOT / "data_prep/prepare.py"), "dataset=sample"]
        subprocess.run(prepare, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        for name in ("well", "failing"):
            found = []
            for turn, cores in enumerate([(first, second), (second, first)]):
                folder = Path(scratch) / f"{name}{turn}"
                folder.mkdir()
                (folder / "data").symlink_to(Path(scratch) / "data")
                found.append(side_by_side(folder, cores, name))
                print(f"server {name}: {found[-1]}", file=sys.stderr)
            cost = Cost(*map(statistics.geometric_mean, zip(*found, strict=True)))
            figures.append((f"a training's step, W&B's server {name}, against none", cost.step, "<=", 1.01))
            figures.append((f"a training of {STEPS} steps, the same", cost.whole, "<=", 1.05))
            figures.append(("then waits for the server (s)", cost.wait, "<=", 30))
    if options.out:
        content = {"figures": figures, "hardware": hardware.describe()}
        write_json(options.out, content | provenance() | {"date": time.strftime("%Y-%m-%d")})
    for label, value, sense, limit in figures:
        print(f"{label:<58} {value:>10.3f}  {sense} {limit:<8g} {'ok' if value <= limit else 'short'}")


if __name__ == "__main__":
    main()
