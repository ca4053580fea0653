import contextlib
import csv
import io
import json
import logging
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from safetensors.torch import load_file

from vdsr import kernels, weights
from vdsr.callbacks.recorder import Recorder

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "src" / "train.py")


@pytest.fixture
def root(tmp_path, monkeypatch, sets):
    """An empty folder to work in, and an environment without trackers' settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "WANDB_SILENT", "HYDRA_FULL_ERROR", "VDSR_SWEEP"):
        monkeypatch.setenv(name, "")  # so that what a run sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    return tmp_path


@pytest.fixture
def arguments(sets):
    """A small, quick configuration; later overrides win."""
    return {
        "data.train": sets.train,
        "data.val": f"[{sets.val}]",
        "data.scales": "[2]",
        "data.patch": "24",
        "data.batch_size": "8",
        "paths.data": str(sets.root),
        "model.depth": "3",
        "model.width": "8",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.max_steps": "6",
        "trainer.validations": "1",
        "trainer.log_every_n_steps": "1",
        "logger": "none",
    }


@pytest.fixture
def train(root, arguments, monkeypatch):
    """Run src/train.py here: its exit status, output and run folders."""

    def run(*extra, **_):
        GlobalHydra.instance().clear()
        overrides = {**arguments, **dict(override.split("=", 1) for override in extra if "=" in override)}
        flags = [override for override in extra if "=" not in override]
        command = [SCRIPT, *flags, *(f"{key}={value}" for key, value in overrides.items())]
        monkeypatch.setattr(sys, "argv", command)
        out, status = io.StringIO(), 0
        handlers = logging.root.handlers[:]
        with contextlib.redirect_stdout(out):
            try:
                runpy.run_path(SCRIPT, run_name="__main__")
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
                out.write(f"{stop.code}\n" if isinstance(stop.code, str) else "")
            finally:
                GlobalHydra.instance().clear()
                for handler in set(logging.root.handlers) - set(handlers):
                    handler.close()
                logging.root.handlers[:] = handlers
        return SimpleNamespace(status=status, out=out.getvalue(), command=command)

    return run


def run_folder(root):
    (path,) = root.rglob("record.json")
    return path.parent


def read(folder):
    return json.loads((folder / "record.json").read_text())


def log_of(folder):
    return (folder / "train.log").read_text()


def curve(record):
    return [(point["step"], point["loss"], point["lr"]) for point in record["curve"]]


# --- learning ---


@pytest.mark.slow
def test_a_short_training_leaves_bicubic_behind(root, train):
    done = train(
        "model.depth=5", "model.width=16", "trainer.max_steps=240", "trainer.validations=3", "data.scales=[2,3]"
    )
    assert done.status == 0
    record = read(run_folder(root))
    assert record["left_bicubic"] is True
    assert record["gain"] > 0.5
    for scale in ("x2", "x3"):
        figures = record["metrics"]["val"][scale]
        assert figures["psnr"] > figures["bicubic_psnr"] + 0.3
        assert figures["ssim"] > figures["bicubic_ssim"]
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"] / 2
    assert [point["step"] for point in record["validations"]] == [80, 160, 240]
    assert record["psnr"] == pytest.approx(record["validations"][-1]["psnr"], abs=1e-4)
    assert record["psnr_best"] == max(point["psnr"] for point in record["validations"])
    assert "did not leave bicubic" not in log_of(run_folder(root))
    assert f"{record['metrics']['val']['x2']['psnr']:.2f}" in done.out


def test_a_run_that_ends_at_bicubic_says_so(root, train):
    dead = ["clip.theta=1e-12", "optim.optimiser.momentum=0", "optim.optimiser.weight_decay=10"]  # all weights to 0
    done = train(*dead)
    assert done.status == 0
    record = read(run_folder(root))
    assert record["gain"] == pytest.approx(0, abs=1e-3)
    assert record["left_bicubic"] is False
    assert record["status"] == "finished"
    assert "this run did not leave bicubic behind (" in log_of(run_folder(root))
    assert "not beyond bicubic yet" in done.out


def test_an_untrained_residual_is_not_beyond_bicubic_either(root, train):
    done = train("clip.theta=1e-12", "optim.lr=1e-9")
    record = read(run_folder(root))
    assert record["gain"] < -1
    assert record["left_bicubic"] is False
    assert "this run did not leave bicubic behind (-" in done.out


# --- what a run leaves ---


OWN = ["model.width=64", "trainer.precision=bf16-mixed", "trainer.max_steps=4"]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("optimiser", ["sgd", "muon"])
def test_our_kernels_train_as_pytorchs_do(root, train, optimiser):
    for choice in ("auto", "false"):
        assert train(*OWN, f"optim={optimiser}", f"trainer.kernels={choice}", f"name=by-{choice}").status == 0
    folders = [next((root / "runs" / f"by-{choice}").rglob("record.json")).parent for choice in ("auto", "false")]
    ours, pytorchs = map(read, folders)
    assert (ours["kernels"], pytorchs["kernels"]) == (kernels.instructions(), "PyTorch")
    for (_, loss, _), (_, other, _) in zip(curve(ours), curve(pytorchs), strict=True):
        assert loss == pytest.approx(other, rel=1e-2)
    assert ours["psnr"] == pytest.approx(pytorchs["psnr"], abs=0.02)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("optimiser", ["sgd", "muon"])
def test_a_run_by_the_kernels_goes_on_exactly(root, train, optimiser):
    steps = ["trainer.max_steps=6", "trainer.checkpoint_every=1", f"optim={optimiser}"]
    assert train(*OWN, *steps, "name=whole").status == 0
    whole = next((root / "runs" / "whole").rglob("record.json")).parent
    parts = root / "runs" / "parts"
    with pytest.MonkeyPatch.context() as patch:
        step = kernels.HalfSquaredError.run

        def fail(self, *arguments):
            if fail.left == 0:
                raise KeyError("stopped here")
            fail.left -= 1
            return step(self, *arguments)

        fail.left = 3
        patch.setattr(kernels.HalfSquaredError, "run", fail)
        with pytest.raises(KeyError, match="stopped here"):
            train(*OWN, *steps, "name=parts")
    assert train(*OWN, *steps, "name=parts").status == 0
    part = next(parts.rglob("record.json")).parent
    assert curve(read(part)) == curve(read(whole))
    one, other = (load_file(folder / "weights.safetensors") for folder in (part, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["trainer.precision=bf16-mixed"], "they are for VDSR with 64 filters and at least 3 layers"),
        (["trainer.precision=32-true"], "they are for trainer.precision=bf16-mixed"),
        (["trainer.precision=bf16-mixed", "trainer.compile=true"], "they are for trainer.compile=false"),
    ],
)
def test_kernels_that_are_asked_for_and_missed_are_named(root, train, monkeypatch, overrides, reason):
    monkeypatch.setattr("vdsr.hardware.compiled", lambda net: net.forward)
    assert train("trainer.kernels=true", *overrides).status == 0
    folder = run_folder(root)
    assert read(folder)["kernels"] == "PyTorch"
    expected = f"training with PyTorch's kernels, not our own: {reason}"
    assert log_of(folder).count(expected) == 1


def test_a_missing_compiler_is_said_where_the_kernels_would_help(root, train, monkeypatch):
    monkeypatch.setattr(kernels, "unsupported", lambda: None)
    monkeypatch.setattr(kernels, "_uncompiled", lambda: "there is no C++ compiler: install g++, or set CXX")
    assert train(*OWN).status == 0
    assert "not our own: there is no C++ compiler: install g++, or set CXX" in log_of(run_folder(root))


def test_a_processor_without_bf16_is_no_news(root, train, monkeypatch):
    monkeypatch.setattr(kernels, "unsupported", lambda: "this CPU has no avx512_bf16")
    assert train(*OWN).status == 0
    folder = run_folder(root)
    assert read(folder)["kernels"] == "PyTorch"
    assert "not our own" not in log_of(folder)


def test_a_run_leaves_record_weights_checkpoints_and_pictures(root, train):
    done = train("trainer.validations=2", "trainer.checkpoint_every=2", "seed=3")
    assert done.status == 0
    folder = run_folder(root)
    assert folder.parent == root / "runs" / "train"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "record.json",
        "weights.safetensors",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "pictures/val.png",
        "train.log",
    } <= found
    assert not [name for name in found if "tmp" in name]
    record = read(folder)
    assert (record["status"], record["steps"], record["seed"], record["name"]) == ("finished", 6, 3, "train")
    assert record["network"]["depth"] == 3
    assert record["network"]["parameters"] == 8 * 9 + 8 + 64 * 9 + 8 + 8 * 9 + 1
    assert record["data"]["checksums"].keys() == {"train", "val"}
    assert record["config"]["model"]["depth"] == 3
    assert "model.depth=3" in record["overrides"]
    assert record["versions"]["torch"] == torch.__version__
    assert [step for step, *_ in curve(record)] == [1, 2, 3, 4, 5, 6]
    assert [lr for *_, lr in curve(record)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 1e-4, 1e-4])
    assert record["curve"][0].keys() >= {"loss", "gradient_norm", "share_clipped", "clip_bound", "epoch"}
    assert record["seconds"] > 0
    with Image.open(folder / "pictures" / "val.png") as picture:
        assert len(picture.convert("L").getcolors()) > 50
    stored, last = load_file(folder / "weights.safetensors"), weights.load(folder / "checkpoints" / "last.ckpt")
    assert stored.keys() == last.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in last.state_dict().items())


def test_one_s_own_images(root, train, sets):
    done = train("data=folder", f"paths.data={sets.root}", f"data.train={sets.train}")
    assert done.status == 0
    assert read(run_folder(root))["data"]["train"] == "train"


def test_both_trackers_have_the_run(root, train):
    done = train("logger=default", "trainer.validations=2")
    assert done.status == 0
    folder = run_folder(root)
    (event_file,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    (wandb_file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert "W&B (offline)" in done.out
    assert "TensorBoard: tensorboard --logdir" in done.out
    scalars, images = tensorboard(event_file)
    record = read(folder)
    assert scalars["train/loss"] == pytest.approx([point["loss"] for point in record["curve"]], rel=1e-6)
    assert scalars["val/psnr"] == pytest.approx([point["psnr"] for point in record["validations"]], rel=1e-6)
    assert images == {"pictures/val": 2}
    for name in (b"train/loss", b"val/val/x2/psnr", b"pictures/val"):
        wait_for(wandb_file, name)
    assert len(list((folder / "wandb").rglob("*.png"))) == 2


def wait_for(path, content):
    """W&B's own process may write the end of its log a moment after the run."""
    for _ in range(100):
        if content in path.read_bytes():
            return
        time.sleep(0.1)
    pytest.fail(f"{content!r} is not in {path.name}")


def tensorboard(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    scalars = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars, {tag: len(events.Images(tag)) for tag in events.Tags()["images"]}


# --- stopping and going on ---

# Lightning's word on finding the checkpoints that a run goes on from
found_checkpoints = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")

KILL = f"""
import os, runpy, signal, sys
from vdsr.callbacks.recorder import Recorder
going_on = Recorder.on_train_batch_end
def kill(self, trainer, *rest):
    going_on(self, trainer, *rest)
    if trainer.global_step == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
Recorder.on_train_batch_end = kill
sys.argv[0] = {SCRIPT!r}
runpy.run_path({SCRIPT!r}, run_name="__main__")
"""


@found_checkpoints
def test_a_killed_run_goes_on_as_if_nothing_had_happened(root, train):
    settings = [
        "trainer.max_steps=12", "trainer.validations=3", "trainer.checkpoint_every=4", "data.scales=[2,3]"
    ]  # fmt: skip
    whole = train("paths.runs=whole", *settings)
    command = [argument.replace("paths.runs=whole", "paths.runs=cut") for argument in whole.command]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "KILL_AT": "10"}
    died = subprocess.run([sys.executable, "-c", KILL, *command[1:]], env=environment, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    half = read(run_folder(root / "cut"))
    assert half["status"] == "running"
    assert half["steps"] == 8
    assert not (run_folder(root / "cut") / "weights.safetensors").exists()

    again = train("paths.runs=cut", *settings)
    assert again.status == 0
    assert "continuing at step 8 from" in again.out
    one, two = (run_folder(root / name) for name in ("whole", "cut"))
    assert curve(read(one)) == curve(read(two))
    assert [step for step, *_ in curve(read(two))] == list(range(1, 13))
    assert read(one)["validations"] == read(two)["validations"]
    assert [point["step"] for point in read(two)["validations"]] == [4, 8, 12]
    assert read(one)["metrics"] == read(two)["metrics"]
    first, second = (load_file(folder / "weights.safetensors") for folder in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


@found_checkpoints
def test_a_run_killed_before_its_first_checkpoint_begins_again(root, train, monkeypatch):
    stop_at(monkeypatch, 3, RuntimeError("the machine went away"))
    with pytest.raises(RuntimeError, match="went away"):
        train()
    assert read(run_folder(root))["status"] == "failed"
    assert read(run_folder(root))["error"] == "RuntimeError: the machine went away"
    monkeypatch.undo()
    monkeypatch.chdir(root)
    assert train().status == 0
    record = read(run_folder(root))
    assert record["status"] == "finished"
    assert "error" not in record
    assert [step for step, *_ in curve(record)] == [1, 2, 3, 4, 5, 6]


def stop_at(monkeypatch, step, error):
    going_on = Recorder.on_train_batch_end

    def stop(self, trainer, *rest):
        going_on(self, trainer, *rest)
        if trainer.global_step == step:
            raise error

    monkeypatch.setattr(Recorder, "on_train_batch_end", stop)


def test_control_c_is_recorded_as_stopped(root, train, monkeypatch):
    stop_at(monkeypatch, 3, KeyboardInterrupt())
    with contextlib.suppress(KeyboardInterrupt):
        assert train().status != 0
    assert read(run_folder(root))["status"] == "stopped"


def test_a_finished_run_is_only_reported_again(root, train):
    train()
    folder = run_folder(root)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    again = train()
    assert again.status == 0
    assert "finished already" in again.out
    assert f"{read(folder)['psnr']:.2f}" in again.out
    kept = {name for name in before if ".hydra" not in name.parts}
    assert all(name.stat().st_mtime_ns == before[name] for name in kept)
    assert run_folder(root) == folder


def test_another_configuration_in_the_same_folder_is_refused(root, train):
    train()
    folder = run_folder(root)
    before = read(folder)
    other = train("model.width=9", f"hydra.run.dir='{folder}'")
    assert other.status == 1
    assert f"error: {folder.relative_to(root)} holds a run of another configuration (model.width: 8 → 9)" in other.out
    assert read(folder) == before


def test_accumulation_counts_steps_not_batches(root, train):
    done = train("trainer.accumulate_grad_batches=2", "trainer.validations=3", "trainer.max_steps=6")
    assert done.status == 0
    record = read(run_folder(root))
    assert [step for step, *_ in curve(record)] == [1, 2, 3, 4, 5, 6]
    assert [point["step"] for point in record["validations"]] == [2, 4, 6]
    assert record["curve"][-1]["epoch"] == pytest.approx(6 * 16 / record["data"]["patches_per_epoch"])


# --- what goes wrong ---


def test_a_diverging_run_says_so(root, train):
    done = train("clip=none", "optim.lr=1e6", "trainer.max_steps=30")
    assert done.status == 1
    folder = run_folder(root)
    record = read(folder)
    assert record["status"] == "diverged"
    assert record["error"].startswith("the loss is ")
    assert record["steps"] < 30
    assert not (folder / "weights.safetensors").exists()
    assert f"error: {folder.relative_to(root)}: diverged: the loss is" in done.out
    assert record["curve"][-1]["loss"] is None
    assert all(math.isfinite(point["loss"]) for point in record["curve"][:-1])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.depth=1", "depth 1: a network has at least 2 layers"),
        ("data.scales=[]", "data.scales is empty: give at least one scale"),
        ("data.scales=[2,x]", "scale 'x': give a whole number or simple fraction above 1"),
        ("data.batch_size=5000", "a batch of 5000 needs 5000: lower data.batch_size"),
        ("data.train=nothing", "no shards in nothing; make them with"),
        ("data.val=[]", "data.val is empty"),
        ("clip.theta=0", "must be above 0"),
        ("model.dept=3", "there is no key 'dept' (did you mean 'depth'?)"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(root, train, override, complaint):
    done = train(override)
    assert done.status == 1
    (line,) = done.out.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    assert not list(root.rglob("record.json"))
    assert not list(root.rglob("*.safetensors"))


def test_a_run_folder_that_cannot_be_written_is_one_line(root, train):
    (root / "file").write_text("in the way")
    done = train(f"paths.runs={root / 'file'}")
    assert done.status == 1
    assert done.out.splitlines()[-1].startswith("error: ")
    assert "Not a directory" in done.out


# --- sweeps ---


def test_a_sweep_reports_all_points_and_its_failed_ones(root, train):
    done = train("-m", "model.depth=2,1,3", "trainer.max_steps=2")
    assert done.status == 1
    (table,) = root.rglob("sweep.csv")
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:2] == ["model.depth", "status"]
    assert sorted(row[:2] for row in rows) == [["1", "failed"], ["2", "finished"], ["3", "finished"]]
    assert f"error: 1 of the sweep's points did not finish; see {table.relative_to(root)}" in done.out
    assert "depth 1: a network has at least 2 layers" in done.out
    assert (table.parent / "sweep.png").exists()
    assert len(list(table.parent.rglob("weights.safetensors"))) == 2
