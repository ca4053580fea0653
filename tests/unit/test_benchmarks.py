import subprocess
import sys
from pathlib import Path

import av
import pytest

from vdsr.shards import ShardSet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import films
    import inference
    import measure
    import processes
    import training

    return {"films": films, "inference": inference, "measure": measure, "processes": processes, "training": training}


def test_a_training_step_of_the_paper_is_429_gigaflop(modules):
    assert modules["training"].flops(20) * 64 == pytest.approx(429e9, rel=0.002)


def test_work_is_timed_in_turns(modules):
    called = []
    seconds = modules["measure"].in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert called == ["a", "b"] * 4  # once to warm up
    assert list(seconds) == ["a", "b"]


def test_plain_and_bare_steps_are_the_same_training(modules):
    """What is compared must compute the same: one step from the same weights, in fp32."""
    import torch

    training = modules["training"]
    plain, bare = training.Plain(4), training.Bare(4, torch.float32)
    bare.net.body.load_state_dict(plain.net.state_dict())
    batch = training.batch(3)
    plain.step(batch)
    bare.step(batch)
    for name, tensor in plain.net.state_dict().items():
        assert torch.allclose(tensor, bare.net.body.state_dict()[name], atol=1e-6)


def test_both_videos_are_upscaled(modules, tmp_path, monkeypatch):
    monkeypatch.setattr(modules["inference"], "DEPTH", 2)
    assert set(modules["films"].frames_per_second(tmp_path, 2, 1)) == {"plain", "upscale"}
    shapes = []
    for name in ("plain.mp4", "ours.mp4"):
        with av.open(str(tmp_path / name)) as film:
            shapes.append([(f.width, f.height) for f in film.decode(video=0)])
    assert shapes == 2 * [2 * [(640, 480)]]


def test_generated_images_can_be_prepared(modules, tmp_path):
    source = modules["processes"].images(tmp_path / "images", 3, side=64)
    modules["processes"].prepare(tmp_path, source, "made")
    assert ShardSet.open(tmp_path / "data/made").count == 3


def test_the_benchmark_explains_itself():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bench.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--quick" in done.stdout
