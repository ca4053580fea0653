"""The same training on 1, 2 and 4 ranks."""

import json
import shutil

import pytest


def record(folder):
    return json.loads((folder / "record.json").read_text())


def samples(path, ranks, steps):
    """Every step's samples in their order, put together from all ranks."""
    parts = {}
    for rank in range(ranks):
        for line in path.with_name(f"{path.name}.{rank}").read_text().splitlines():
            step, start, _, rows = json.loads(line)
            parts.setdefault(step, {})[start] = rows
    return [sorted(row for rows in parts[step].values() for row in rows) for step in range(steps)]


@pytest.mark.slow
def test_one_two_and_four_ranks_train_the_same(attempts, frequent, tmp_path):
    common = [*frequent, "logger=none", "data.scales=[2,3]", "trainer.max_steps=50", "trainer.validations=2"]
    for ranks in (1, 2, 4):
        order = {"ranks": ranks, "samples": tmp_path / f"samples-{ranks}"}
        done = attempts(*common, f"hydra.run.dir={tmp_path / str(ranks)}", **order)
        assert done.statuses == [0] * ranks, done.out[-3000:]
    one = record(tmp_path / "1")
    expected = samples(tmp_path / "samples-1", 1, 50)
    assert all(len(step) == 8 for step in expected)
    assert len({json.dumps(step) for step in expected}) == 50
    for ranks in (2, 4):
        assert samples(tmp_path / f"samples-{ranks}", ranks, 50) == expected
        other = record(tmp_path / str(ranks))
        for a, b in zip(one["curve"], other["curve"], strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
            assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)
        # the same weights scored by other ranks: a run that is at its end is only tested
        shutil.copytree(tmp_path / "1", tmp_path / f"scored-{ranks}")
        (tmp_path / f"scored-{ranks}" / "weights.safetensors").unlink()
        done = attempts(*common, f"hydra.run.dir={tmp_path / f'scored-{ranks}'}", ranks=ranks)
        assert done.statuses == [0] * ranks, done.out[-3000:]
        scored = record(tmp_path / f"scored-{ranks}")
        for scale, figures in one["metrics"]["val"].items():
            assert scored["metrics"]["val"][scale] == pytest.approx(figures, abs=1e-6)


def test_ranks_that_disagree_do_not_start(attempts, frequent, tmp_path):
    arguments = [*frequent, "logger=none", f"hydra.run.dir={tmp_path}"]
    done = attempts(*arguments, "seed={rank}", "optim.lr=0.0{rank}1", ranks=2)
    assert done.statuses == [1, 1]
    lines = [line for line in done.out.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "the ranks disagree on data.seed: 0 on rank 0, 1 on rank 1" in lines[0]
    assert "optim.lr: 0.001 on rank 0, 0.011 on rank 1" in lines[0]
    assert lines[0].endswith("Start all with the same code, data and command")
    assert "Traceback" not in done.out
    assert record(tmp_path)["status"] == "failed"
    assert record(tmp_path)["curve"] == []
