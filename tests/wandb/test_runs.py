"""A training and the server: what arrives is the run's own record, whatever happens on the way."""

import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from tests.wandb.endpoint import FAULTS
from vdsr import upload

ROOT = Path(__file__).parents[2]

# src/train.py that does something after each step
AFTER_A_STEP = f"""
import os, runpy, signal, sys, time
from vdsr.callbacks.recorder import Recorder
going_on = Recorder.on_train_batch_end
def after(self, trainer, *rest):
    going_on(self, trainer, *rest)
    %s
Recorder.on_train_batch_end = after
sys.argv[0] = {str(ROOT / "src/train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# W&B's log is flushed each second
KILLED = (
    AFTER_A_STEP % "trainer.global_step == int(os.environ['KILL_AT']) and [time.sleep(1.5), os.kill(os.getpid(), 9)]"
)
HELD = (
    AFTER_A_STEP
    % """
    for step, event in ((60, "back"), (120, "gone")):
        while trainer.global_step == step and not os.path.exists(event):
            time.sleep(0.05)
"""
)


@pytest.fixture
def record(tmp_path):
    return lambda: json.loads((tmp_path / "run/record.json").read_text())


def only(found):
    (one,) = found
    return one


def figures(run):
    """{(key, step): value} of a run's history; no figure may be there twice."""
    found = {}
    for row in run.history:
        for key, value in row.items():
            if not key.startswith("_") and key != "trainer/global_step":
                place = (key, row["trainer/global_step"])
                assert place not in found or key == "epoch", place
                found[place] = value
    return found


def pictures(endpoint, run):
    """{step: pixels} of the pictures that its history shows."""
    shown = {}
    for (key, step), value in figures(run).items():
        if key == "pictures/val":
            data = endpoint.stored[run.files[only(value["filenames"])]]
            shown[step] = np.asarray(Image.open(io.BytesIO(data)))
    return shown


def assert_is_the_record(endpoint, run, record, run_dir):
    """Every step and figure of the record, none twice, none beside them, and the pixels of the last picture."""
    found = figures(run)
    expected = {}
    for point in record["curve"]:
        # a step that is taken twice is as fast as it is: W&B has the first figure
        timeless = {k: v for k, v in point.items() if k not in ("step", "epoch", "patches_per_second")}
        expected |= {(f"train/{key}", point["step"] - 1): value for key, value in timeless.items()}
    best = 0
    for point in record["validations"]:
        step, best = point["step"] - 1, max(best, point["psnr"])
        expected |= {("val/psnr", step): point["psnr"], ("val/psnr_best", step): best}
        for name, scales in point["scores"].items():
            for scale, score in scales.items():
                key = f"val/{name}/{scale}"
                expected |= {(f"{key}/psnr", step): score["psnr"], (f"{key}/ssim", step): score["ssim"]}
                expected[f"{key}/gain", step] = score["psnr"] - score["bicubic_psnr"]
    assert {step for key, step in found if key == "train/loss"} == set(range(record["steps"]))
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, rel=1e-5), place
    others = {key for key, _ in found.keys() - expected.keys() if not key.startswith("test/")}
    assert others == {"val/gain", "epoch", "pictures/val", "train/patches_per_second"}
    shown = pictures(endpoint, run)
    assert sorted(shown) == [point["step"] for point in record["validations"]]
    assert np.array_equal(shown[record["steps"]], np.asarray(Image.open(run_dir / "pictures/val.png")))


def test_an_online_run(endpoint, train, record, tmp_path):
    done = train()
    assert done.status == 0, done.out
    run = only(endpoint.runs.values())
    assert_is_the_record(endpoint, run, record(), tmp_path / "run")
    assert (run.project, run.state, run.group, run.job_type, run.tags) == (
        "vdsr",
        "finished",
        "train",
        "train",
        ["quick"],
    )
    assert run.config["model"]["depth"] == 3
    assert run.config["data"]["scales"] == [2, 3]
    address = f"W&B: {endpoint.url}/tester/vdsr/runs/{run.id}"
    assert done.out.count(address) == 2  # once there is one, and at the end
    assert "sync" not in done.out

    # the final benchmark
    scores = record()["metrics"]["val"]
    assert figures(run)["test/val/x2/psnr", 20] == pytest.approx(scores["x2"]["psnr"])
    table = json.loads(endpoint.stored[run.files[run.summary["test/benchmark"]["path"]]])
    assert table["columns"] == ["set", "scale", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "gain"]
    assert [row[:3] for row in table["data"]] == [["val", s, pytest.approx(scores[s]["psnr"])] for s in ("x2", "x3")]

    # where the data came from, and what came of it: no image leaves the house
    artifacts = {name: endpoint.artifacts[name] for name in run.used + run.logged}
    used = {endpoint.artifacts[name]["name"]: endpoint.artifacts[name] for name in run.used}
    assert used.keys() == {"data-train", "data-val"}
    assert used["data-train"]["metadata"]["checksum"] == record()["data"]["checksums"]["train"]
    assert all(artifact["files"].keys() == {"shards.json"} for artifact in used.values())
    assert {artifact["state"] for artifact in artifacts.values()} == {"COMMITTED"}
    weights = only(a for a in artifacts.values() if a["type"] == "model")
    sent, own = (load(d) for d in (endpoint.stored[weights["files"]["weights.safetensors"]],
                                   (tmp_path / "run/weights.safetensors").read_bytes()))  # fmt: skip
    assert sent.keys() == own.keys()
    assert all(np.array_equal(sent[name], own[name]) for name in own)
    assert weights["metadata"]["psnr"] == pytest.approx(record()["psnr"])


def test_images_are_sent_when_asked_to(endpoint, train, sets):
    assert train("logger.wandb.upload_data=true", "trainer.max_steps=1", "trainer.validations=1").status == 0
    data = only(a for a in endpoint.artifacts.values() if a["name"] == "data-train")
    tar = "train-00000.tar"
    assert endpoint.stored[data["files"][tar]] == (Path(sets.train) / tar).read_bytes()


def test_two_ranks_are_one_run(endpoint, train, record, tmp_path):
    done = train("trainer.devices=2")
    assert done.status == 0, done.out
    assert_is_the_record(endpoint, only(endpoint.runs.values()), record(), tmp_path / "run")


def test_an_offline_run_is_sent_later_and_once(endpoint, train, sync, record, tmp_path):
    done = train(WANDB_MODE="offline")
    assert done.status == 0, done.out
    assert "W&B (offline): wandb sync --yes run/wandb/offline-run-" in done.out
    assert not endpoint.asked
    assert "1 sent, 0 not" in sync().out
    run = only(endpoint.runs.values())
    assert_is_the_record(endpoint, run, record(), tmp_path / "run")
    assert run.state == "finished"
    assert len(run.used) == 2
    before = list(run.history)
    assert "0 sent, 0 not" in sync().out
    only(tmp_path.rglob("*.wandb.synced")).unlink()  # as after a sync that was cut off
    assert "1 sent, 0 not" in sync().out
    assert run.history == before


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "steps"), [("online", [8, 13]), ("offline", [13])])
def test_a_run_that_is_killed(endpoint, train, sync, record, tmp_path, mode, steps):
    for step in steps:
        done = train(program=("-c", KILLED), KILL_AT=step, WANDB_MODE=mode)
        assert done.status == -signal.SIGKILL, done.out
    assert train(WANDB_MODE=mode).status == 0
    if mode == "offline":
        assert "2 sent, 0 not" in sync().out
    run = only(endpoint.runs.values())
    assert_is_the_record(endpoint, run, record(), tmp_path / "run")
    assert run.state == "finished"
    assert "0 sent, 0 not" in sync().out


# --- a server that fails ---


def complaints(out):
    return [line for line in out.splitlines() if line.startswith("W&B: ") and "http://" not in line[:12]]


def test_a_server_that_fails_in_every_way(endpoint, train, sync, record, tmp_path):
    endpoint.faults = dict.fromkeys(FAULTS, 0.08)
    done = train(WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS=2, WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS=2)
    assert done.status == 0, done.out
    assert len(complaints(done.out)) <= 1
    assert "Traceback" not in done.out
    endpoint.faults = {}
    assert sync().status == 0
    assert_is_the_record(endpoint, only(endpoint.runs.values()), record(), tmp_path / "run")


def test_a_proxy_that_answers_in_the_place_of_the_server(endpoint, train, sync, record, tmp_path):
    endpoint.spared = {"UpsertBucket", "file_stream", "upload"}  # without these nothing would begin
    endpoint.faults = {"garbage": 1.0}
    done = train()
    assert done.status == 0, done.out
    assert "W&B (offline): wandb sync --yes run/wandb/offline-run-" in done.out
    assert "0 sent, 1 not" in sync().out
    endpoint.faults = {}
    assert "1 sent, 0 not" in sync().out
    assert_is_the_record(endpoint, only(endpoint.runs.values()), record(), tmp_path / "run")


@pytest.mark.slow
def test_errors_then_an_outage_then_gone(endpoint, train, sync, record, tmp_path):
    over, done = threading.Event(), []

    def rows(more):
        """Wait for so many more rows, or the end of the training."""
        enough = sum(len(run.rows) for run in endpoint.runs.values()) + more
        while not over.wait(0.05) and sum(len(run.rows) for run in endpoint.runs.values()) < enough:
            pass

    def fail():
        rows(10)
        endpoint.unreachable()
        over.wait(5)
        endpoint.reachable()
        (tmp_path / "back").touch()
        rows(10)
        endpoint.unreachable()
        (tmp_path / "gone").touch()
        done.append(not over.is_set())

    endpoint.faults = {"error": 0.3}
    failing = threading.Thread(target=fail)
    failing.start()
    trained = train("trainer.max_steps=140", "trainer.checkpoint_every=60", program=("-c", HELD))
    over.set()
    failing.join()
    assert trained.status == 0, trained.out
    assert record()["status"] == "finished"
    assert "Traceback" not in trained.out
    assert "W&B (offline): wandb sync --yes run/wandb/offline-run-" in trained.out
    assert done == [True]  # all of it during the training
    endpoint.faults = {}
    endpoint.reachable()
    assert sync().status == 0
    assert_is_the_record(endpoint, only(endpoint.runs.values()), record(), tmp_path / "run")


@pytest.mark.parametrize(("there", "waits"), [(True, True), (False, False)], ids=["there", "gone"])
def test_the_end_waits_for_a_silent_server_only_while_it_is_there(endpoint, monkeypatch, tmp_path, there, waits):
    monkeypatch.setattr(upload, "SILENCE", 4)
    monkeypatch.setattr(upload, "SCRIPT", "sleep 60")  # a sender that has nothing to say
    endpoint.faults = {"error": 1.0}
    if not there:
        endpoint.unreachable()
    sender = upload.Upload(tmp_path / "offline-run-1", endpoint.url)
    begun = time.monotonic()
    sender.finish(asked_to_leave=False)
    assert (time.monotonic() - begun >= 4) is waits


def test_a_server_that_was_never_there(endpoint, train, sync, record, tmp_path):
    endpoint.unreachable()
    done = train()
    assert done.status == 0, done.out
    assert "W&B (offline): wandb sync --yes run/wandb/offline-run-" in done.out
    done = sync(WANDB_X_GRAPHQL_RETRY_MAX=1)
    assert (done.status, "0 sent, 1 not" in done.out) == (1, True), done.out
    endpoint.reachable()
    assert sync().status == 0
    assert_is_the_record(endpoint, only(endpoint.runs.values()), record(), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"WANDB_API_KEY": "f" * 40}, "user is not logged in"),
        ({"WANDB_API_KEY": "hello"}, "API key must have 40+ characters"),
        ({"PROJECT": "forbidden"}, "permission denied: tester may not write to forbidden"),
    ],
    ids=["wrong key", "no key", "project"],
)
def test_who_may_not_is_told_so_once_and_goes_on_offline(endpoint, train, tmp_path, settings, said):
    project = settings.get("PROJECT", "vdsr")
    done = train(f"logger.wandb.project={project}", "trainer.max_steps=60", "model.width=16", **settings)
    assert done.status == 0, done.out
    (line,) = complaints(done.out)
    assert said in line
    assert settings.get("WANDB_API_KEY", "no key") not in done.out
    assert "W&B (offline): wandb sync --yes run/wandb/offline-run-" in done.out
    assert not any(run.rows for run in endpoint.runs.values())
    assert os.listdir(tmp_path / "run/wandb")
