import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def arguments(sets, tmp_path):
    """Arguments of src/reproduce.py for tiny runs: `arguments("name=a", "name=b clip=none")`."""

    def make(*commands):
        tiny = f"+experiment=smoke logger=none trainer.accelerator=cpu data.train={sets.train} data.val=[{sets.val}]"
        quoted = ",".join(f'"{tiny} {command}"' for command in commands)
        folders = [f"paths.runs={tmp_path}/runs", f"paths.data={sets.root}", f"results={tmp_path}/results"]
        return ["budget=quick", "datasets=[]", f"commands=[{quoted}]", *folders]

    return make


def kept(tmp_path):
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "results").rglob("*.json"))]
    return {record["name"]: record for record in records}


def test_a_failing_a_killed_and_a_diverging_run_do_not_stop_the_others(arguments, tmp_path):
    points = ["name=bad data.patch=500", "name=cut trainer.max_steps=1000000", "name=wild clip=none optim.lr=1e30"]
    points += ["name=fine"]
    script = [sys.executable, str(ROOT / "src/reproduce.py"), *arguments(*points), "jobs=2"]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not list((tmp_path / "runs/cut").rglob("last.ckpt")):
            assert process.poll() is None
            time.sleep(0.2)
        pattern = f"train.py -m .*name=cut.*{tmp_path}"
        (pid,) = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(pid), signal.SIGKILL)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 1
    assert "3 of 4 runs did not finish" in err
    assert "Traceback" not in err
    records = kept(tmp_path)
    assert {name: record["status"] for name, record in records.items()} == {
        "bad": "failed",
        "cut": "killed",
        "wild": "diverged",
        "fine": "finished",
    }
    assert "too small for patches" in records["bad"]["error"]
    assert records["cut"]["error"] == "ended with status -9"
    assert [line.split()[0] for line in out.splitlines() if "name=fine" in line] == ["to", "finished"]


def test_what_is_done_is_not_trained_again_and_a_stopped_run_goes_on(arguments, command, tmp_path):
    first = command(tmp_path, "src/reproduce.py", *arguments("name=one"))
    assert first.status == 0, first.err
    before = kept(tmp_path)["one"]
    again = command(tmp_path, "src/reproduce.py", *arguments("name=one", "name=two"))
    assert again.status == 0, again.err
    assert "1 of 2 runs are done; left: 1, about" in again.out
    records = kept(tmp_path)
    assert records["one"] == before
    assert records["two"]["status"] == "finished"
    one = command(tmp_path, "src/reproduce.py", *arguments("name=one", "name=two"), "dry_run=true")
    assert "2 of 2 runs are done; left: 0" in one.out


def test_a_diverged_run_is_not_continued(arguments, command, tmp_path):
    for _ in range(2):
        result = command(tmp_path, "src/reproduce.py", *arguments("name=wild clip=none optim.lr=1e30"))
        assert result.status == 1
        assert "1 of 1 runs did not finish" in result.err
        assert kept(tmp_path)["wild"]["status"] == "diverged"
    (log,) = (tmp_path / "runs/logs").iterdir()
    assert log.read_text().count("diverged: the loss is") >= 2


def test_each_point_of_a_sweep_keeps_a_record_of_its_own(arguments, command, tmp_path):
    result = command(tmp_path, "src/reproduce.py", *arguments("name=widths model.width=4,8"))
    assert result.status == 0, result.err
    paths = (tmp_path / "results").rglob("*.json")
    assert sorted(json.loads(path.read_text())["network"]["width"] for path in paths) == [4, 8]


def test_sweeps_are_taken_point_by_point(arguments, command, tmp_path):
    listed = command(
        tmp_path, "src/reproduce.py", *arguments("name=depths model.depth=3,4 seed=0,1"), "dry_run=true"
    ).out.splitlines()
    assert [line.split("model.depth=")[1].split()[0:2] for line in listed[:-1]] == [
        ["3", "seed=0"],
        ["3", "seed=1"],
        ["4", "seed=0"],
        ["4", "seed=1"],
    ]
    assert listed[-1] == "0 of 4 runs are done; left: 4"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("jobs=0", "jobs=0: give a whole number, 1 or more"),
        ("budget=nosuch", "budget/nosuch"),
        ('commands=["+experiment=nosuch"]', "experiment/nosuch"),
        ('commands=["nosuch=1"]', "nosuch"),
    ],
)
def test_bad_input_ends_in_a_line_before_anything_runs(arguments, command, tmp_path, change, complaint):
    result = command(tmp_path, "src/reproduce.py", *arguments("name=x"), change)
    assert result.status == 1
    assert complaint in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
