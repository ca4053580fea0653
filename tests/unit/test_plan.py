import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vdsr.errors import InputError
from vdsr.plan import Plan

SIZES = {"heights": [40, 33, 57], "widths": [50, 64, 31]}

# (scale, image, top, left, turns) of two steps, and the SHA-256 of two hundred.
GOLDEN = {
    0: [
        (2, 1, 41, 0, 0),
        (2, 0, 41, 41, 0),
        (3, 1, 0, 0, 6),
        (3, 0, 0, 41, 3),
        (4, 0, 41, 41, 2),
        (4, 0, 0, 0, 6),
    ],
    1000: [
        (2, 0, 41, 0, 0),
        (2, 0, 0, 0, 4),
        (3, 0, 41, 41, 7),
        (3, 1, 41, 0, 7),
        (4, 1, 41, 0, 1),
        (4, 0, 41, 0, 6),
    ],
    "digest": "969b3800f38526306f2ce989ad3d41652ae820f90cab4ecf3c1b78927b6a727a",
}


def plan(**changes):
    return Plan(**{**SIZES, "scales": (2, 3, 4), "patch": 10, "batch_size": 12, "seed": 5, **changes})


def rows(crops):
    """Every sample of a step as (scale, image, top, left, turns)."""
    return [(crop.scale, *map(int, sample)) for crop in crops for sample in zip(*crop[1:], strict=True)]


def digest(steps):
    return hashlib.sha256(json.dumps([rows(crops) for crops in steps]).encode()).hexdigest()


def epoch(made, scale, number):
    """The patches of a scale, in the order in which an epoch gives them."""
    j = made.scales.index(scale)
    share, length = made.shares[j], len(made.tables[j])
    first, last = number * length // share, -(-(number + 1) * length // share)
    order = [row for step in range(first, last) for row in rows(made.step(step)) if row[0] == scale]
    begin = number * length - first * share
    return [row[:4] for row in order[begin : begin + length]]


# --- a pure function ---


def test_a_step_is_the_same_whenever_it_is_asked():
    made = plan()
    before = rows(made.step(7))
    for step in (3, 999, 0):
        made.step(step)
    assert rows(made.step(7)) == before == rows(plan().step(7))
    assert before != rows(made.step(8))


@pytest.mark.parametrize("samples", [None, range(3, 9)])
def test_several_steps_at_once_are_those_steps(samples):
    made = plan()
    one_by_one = [made.step(step, samples) for step in range(5, 400)]  # over several epochs
    together = made.step(5, samples, 395)
    for j, crops in enumerate(together):
        assert crops.scale == one_by_one[0][j].scale
        for k in range(1, len(crops)):
            assert np.array_equal(crops[k], np.concatenate([each[j][k] for each in one_by_one]))


def test_another_process_has_the_same_plan():
    code = f"""
import hashlib, json
from vdsr.plan import Plan
made = Plan({SIZES["heights"]}, {SIZES["widths"]}, (2, 3, 4), 10, 12, 5)
steps = [[(c.scale, *map(int, s)) for c in made.step(t) for s in zip(*c[1:])] for t in (0, 50, 123456)]
print(hashlib.sha256(json.dumps(steps).encode()).hexdigest())
"""
    path = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(plan().step(t) for t in (0, 50, 123456))


@pytest.mark.parametrize("ranks", [2, 3, 4, 12])
def test_the_ranks_together_have_the_whole_batch(ranks):
    made = plan()
    share = made.batch_size // ranks
    for step in (0, 9, 10_000):
        parts = [made.step(step, range(r * share, (r + 1) * share)) for r in range(ranks)]
        assert [len(rows(part)) for part in parts] == [share] * ranks
        assert Counter(row for part in parts for row in rows(part)) == Counter(rows(made.step(step)))


def test_no_samples_are_no_crops():
    assert plan().step(0, range(0)) == []


def test_seeds_differ():
    assert rows(plan(seed=5).step(0)) != rows(plan(seed=6).step(0))


def test_the_plan_is_the_one_that_past_runs_had():
    """Change these values only knowingly: runs can then no longer be repeated, nor continued."""
    made = Plan([100, 90], [120, 80], (2, 3, 4), 41, 6, 0)
    assert rows(made.step(0)) == GOLDEN[0]
    assert rows(made.step(1000)) == GOLDEN[1000]
    assert digest(plan().step(step) for step in range(200)) == GOLDEN["digest"]


# --- epochs ---


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_patch_comes_once_in_each_epoch(scale):
    made = plan()
    grid = {(scale, *map(int, row)) for row in made.tables[made.scales.index(scale)]}
    for number in (0, 1, 17):
        order = epoch(made, scale, number)
        assert len(order) == len(grid)
        assert set(order) == grid


def test_each_epoch_and_each_scale_has_its_own_order():
    made = plan()
    assert epoch(made, 2, 0) != epoch(made, 2, 1)
    orders = [[row[1:] for row in epoch(made, scale, 0)] for scale in (3, 4)]
    assert sorted(orders[0]) != orders[0]
    common = set(orders[0]) & set(orders[1])
    assert [row for row in orders[0] if row in common] != [row for row in orders[1] if row in common]


# --- the grid ---


@pytest.mark.parametrize(
    ("size", "scale", "corners"),
    [
        ((10, 10), 2, [(0, 0)]),
        ((20, 10), 2, [(0, 0), (10, 0)]),
        ((21, 29), 2, [(0, 0), (0, 10), (10, 0), (10, 10)]),
        ((20, 20), 3, [(0, 0)]),  # cut to 18 × 18
        ((21, 30), 3, [(0, 0), (0, 10), (0, 20), (10, 0), (10, 10), (10, 20)]),
        ((12, 24), 2.5, [(0, 0), (0, 10)]),  # cut to 10 × 20
    ],
)
def test_patches_side_by_side_on_the_image_cut_to_the_scale(size, scale, corners):
    made = Plan([size[0]], [size[1]], [scale], 10, 1, 0)
    assert [tuple(row) for row in made.tables[0].tolist()] == [(0, *corner) for corner in corners]
    assert made.patches == len(corners)


def test_images_too_small_for_a_scale_give_it_no_patch():
    made = Plan([11, 30], [11, 30], [2, 4], 10, 2, 0)
    assert [table[:, 0].tolist() for table in made.tables] == [[0] + [1] * 9, [1] * 4]
    assert made.patches == 14


# --- batches ---


@pytest.mark.parametrize(("batch_size", "counts"), [(12, [4, 4, 4]), (16, [6, 5, 5]), (3, [1, 1, 1])])
def test_each_batch_mixes_the_scales_evenly(batch_size, counts):
    made = plan(batch_size=batch_size)
    for step in (0, 1, 77):
        assert [(crop.scale, len(crop.image)) for crop in made.step(step)] == list(zip((2, 3, 4), counts, strict=True))


def test_turns_cover_all_eight_evenly_and_differ_by_step():
    made = plan()
    turns = Counter(row[4] for step in range(400) for row in rows(made.step(step)))
    assert set(turns) == set(range(8))
    assert min(turns.values()) > 500  # of 4,800; 600 expected, deviation 23
    assert [r[4] for r in rows(made.step(0))] != [r[4] for r in rows(made.step(1))]


def test_without_turns_nothing_else_changes():
    turned, straight = plan(), plan(turn=False)
    for step in range(20):
        assert {row[4] for row in rows(straight.step(step))} == {0}
        assert [row[:4] for row in rows(straight.step(step))] == [row[:4] for row in rows(turned.step(step))]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 200}, "gives 53 patches of 10×10 at ×2, a batch of 200 needs 67"),
        ({"patch": 58}, "gives 0 patches of 58×58 at ×2, a batch of 12 needs 4"),
        ({"heights": [], "widths": []}, "gives 0 patches of 10×10 at ×2"),
    ],
)
def test_a_batch_larger_than_the_set_is_refused(changes, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        plan(**changes)
    assert "lower data.batch_size or data.patch, or add images" in str(caught.value)


def test_a_batch_may_take_the_whole_set():
    made = Plan([20], [20], [2], 10, 4, 0)
    assert sorted(zip(*(made.step(3)[0][2:4]), strict=True)) == [(0, 0), (0, 10), (10, 0), (10, 10)]


def test_arrays_are_whole_numbers():
    for crop in plan().step(0):
        assert all(isinstance(array, np.ndarray) and array.dtype == np.int64 for array in crop[1:])


def test_a_batch_holds_every_scale():
    with pytest.raises(InputError, match=r"data\.batch_size=2: give each of the 3 scales at least one"):
        Plan([64], [64], [2, 3, 4], 10, 2, 0)
