"""Trainings that are killed and started again: what they leave is what one that was never killed leaves."""

import collections
import json
import random
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

KINDS = {
    "loading": ["loading images", "loading a batch"],
    "in a step": ["before a step", "before an update", "after an update"],
    "writing": ["writing a record", "writing a checkpoint", "keeping the previous checkpoint", "renaming a checkpoint"],
    "validating": ["validating an image", "ending a validation"],
}
HIGHEST = {"before a step": 9, "before an update": 9, "after an update": 9, "validating an image": 3}
HIGHEST |= {"writing a checkpoint": 4, "keeping the previous checkpoint": 3, "renaming a checkpoint": 3}


def record(folder):
    return json.loads((folder / "record.json").read_text())


def in_tensorboard(folder):
    """How often each (tag, step) is there."""
    paths = folder.glob("tensorboard/events*")
    events = (event for path in paths for event in LegacyEventFileLoader(str(path)).Load())
    return collections.Counter((value.tag, event.step) for event in events for value in event.summary.value)


def in_wandb(folder):
    """The same of all parts of a W&B run, by W&B's own reader."""
    found = collections.Counter()
    for path in folder.glob("wandb/*run-*/run-*.wandb"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", path]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        for item in (json.loads(line).get("history", {}).get("item", {}) for line in lines):
            found.update((key.removesuffix("._type"), item["trainer/global_step"]) for key in item)
    return found


def figures(found):
    """The counts of training and validation figures; speed depends on where an attempt began."""
    wanted = ("train/", "val/", "pictures/val")
    return {k: n for k, n in found.items() if k[0].startswith(wanted) and "per_second" not in k[0] and "." not in k[0]}


def assert_alike(one, other):
    first, second = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    a, b = record(one), record(other)
    assert (a["status"], b["status"]) == ("finished", "finished")
    assert [untimed(point) for point in a["curve"]] == [untimed(point) for point in b["curve"]]
    assert [point["step"] for point in b["curve"]] == list(range(1, b["steps"] + 1))
    assert a["validations"] == b["validations"]
    assert a["metrics"] == b["metrics"]


def untimed(point):
    return {key: value for key, value in point.items() if key != "patches_per_second"}


def kill_again_and_again(attempts, arguments, folder, kills, ranks, seed):
    """Every kind of moment as often as the others, in a random order."""
    rng = random.Random(seed)
    chosen = [kind for kind in KINDS for _ in range(kills // len(KINDS))]
    rng.shuffle(chosen)
    for kind in chosen:
        moment = rng.choice(KINDS[kind])
        rank = 0 if kind == "writing" else rng.randrange(ranks)  # only the first one writes
        kill = (signal.SIGKILL, moment, rng.randint(1, HIGHEST.get(moment, 1)), rank)
        done = attempts(*arguments, f"hydra.run.dir={folder}", ranks=ranks, interrupts=[kill])
        assert done.statuses[rank] == -signal.SIGKILL, f"{kill}: {done.statuses}\n{done.out[-3000:]}"
        assert set(done.statuses) <= {-signal.SIGKILL, 1}, done.out[-3000:]  # or the loss of its peer ends it first
    done = attempts(*arguments, f"hydra.run.dir={folder}", ranks=ranks)
    assert set(done.statuses) == {0}, done.out[-3000:]


@pytest.mark.slow
def test_a_run_killed_20_times_is_the_one_that_was_never_killed(attempts, frequent, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert attempts(*frequent, f"hydra.run.dir={whole}").statuses == [0]
    kill_again_and_again(attempts, frequent, cut, kills=20, ranks=1, seed=5)
    assert_alike(whole, cut)
    assert not list(cut.rglob("*.ckpt.*.tmp"))
    for read in (in_tensorboard, in_wandb):
        expected, found = figures(read(whole)), figures(read(cut))
        assert set(expected.values()) == set(found.values()) == {1}
        pictures = {key for key in expected if key[0] == "pictures/val"}  # W&B may lose the last before a kill
        assert expected.keys() - pictures == found.keys() - pictures
        assert len(found) > 120 * 5


@pytest.mark.slow
def test_so_is_one_of_two_ranks(attempts, frequent, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    frequent = [*frequent, "logger=tensorboard", "trainer.max_steps=48", "trainer.validations=6"]
    assert attempts(*frequent, f"hydra.run.dir={whole}", ranks=2).statuses == [0, 0]
    kill_again_and_again(attempts, frequent, cut, kills=8, ranks=2, seed=1)
    assert_alike(whole, cut)
    assert set(figures(in_tensorboard(cut)).values()) == {1}
    assert figures(in_tensorboard(cut)) == figures(in_tensorboard(whole))


def test_a_kill_in_the_final_test_loses_nothing_of_the_training(attempts, frequent, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    short = ["logger=tensorboard", "trainer.max_steps=16", "trainer.validations=2", "data.test_scales=[3]"]
    frequent = [*frequent, *short]
    assert attempts(*frequent, f"hydra.run.dir={whole}").statuses == [0]
    kill = (signal.SIGKILL, "testing an image", 2, 0)
    assert attempts(*frequent, f"hydra.run.dir={cut}", interrupts=[kill]).statuses == [-signal.SIGKILL]
    trained = record(cut)["seconds"]
    assert attempts(*frequent, f"hydra.run.dir={cut}").statuses == [0]
    assert_alike(whole, cut)
    assert record(cut)["seconds"] > trained
    assert record(cut)["psnr_best"] == record(whole)["psnr_best"]
    assert figures(in_tensorboard(cut)) == figures(in_tensorboard(whole))


def test_a_clock_that_jumps_changes_nothing(attempts, frequent, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    frequent = [*frequent, "logger=tensorboard", "trainer.max_steps=16", "trainer.validations=2"]
    assert attempts(*frequent, f"hydra.run.dir={whole}").statuses == [0]
    kill = (signal.SIGKILL, "before a step", 11, 0)
    assert attempts(*frequent, f"hydra.run.dir={cut}", interrupts=[kill], clock=3600).statuses == [-signal.SIGKILL]
    assert attempts(*frequent, f"hydra.run.dir={cut}", clock=86400 * 365).statuses == [0]
    assert_alike(whole, cut)
    assert figures(in_tensorboard(cut)) == figures(in_tensorboard(whole))
    assert 0 < record(cut)["seconds"] < 600
    rates = [point["patches_per_second"] for point in record(cut)["curve"] if "patches_per_second" in point]
    assert min(rates) > 0


def test_a_checkpoint_cut_in_half(attempts, frequent, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    frequent = [*frequent, "logger=none", "trainer.max_steps=16", "trainer.validations=2"]
    assert attempts(*frequent, f"hydra.run.dir={whole}").statuses == [0]
    kill = (signal.SIGKILL, "before a step", 11, 0)
    assert attempts(*frequent, f"hydra.run.dir={cut}", interrupts=[kill]).statuses == [-signal.SIGKILL]
    last = cut / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    done = attempts(*frequent, f"hydra.run.dir={cut}")
    assert done.statuses == [0]
    first, second, *_ = done.out.splitlines()
    assert "last.ckpt is damaged (File is not a zip file): set aside as last.ckpt.damaged" in first
    assert "continuing at step 6 from" in second
    assert_alike(whole, cut)
