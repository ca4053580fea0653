"""VDSR_POINT: one point of a sweep in a process of its own."""

import csv

import pytest

SWEEP = ("model.depth=3,4", "model.width=4,5", "trainer.max_steps=1", "-m")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Hydra's points learn the sweep's name through the environment; no test may leave it to the next."""
    monkeypatch.setenv("VDSR_SWEEP", "mine")


def points(folder):
    return sorted(path.parent.name for path in folder.glob("runs/smoke/*/*/record.json"))


def test_the_list_is_in_the_order_of_the_sweep(train, tmp_path, monkeypatch):
    monkeypatch.setenv("VDSR_POINT", "list")
    listed = train(tmp_path, *SWEEP)
    assert listed.status == 0
    found = [[word for word in line.split() if "model." in word] for line in listed.out.splitlines()]
    assert found == [[f"model.depth={d}", f"model.width={w}"] for d in (3, 4) for w in (4, 5)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_points_one_by_one_are_the_sweep(train, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "single").mkdir()
    assert train(tmp_path / "whole", *SWEEP).status == 0
    for number in (2, 0, 3, 1):
        monkeypatch.setenv("VDSR_POINT", str(number))
        assert train(tmp_path / "single", *SWEEP).status == 0
        assert len(points(tmp_path / "single")) == {2: 1, 0: 2, 3: 3, 1: 4}[number]
    assert points(tmp_path / "single") == points(tmp_path / "whole")
    tables = []
    for folder in ("whole", "single"):
        with (tmp_path / folder / "runs/smoke/mine/sweep.csv").open() as file:
            tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 4


@pytest.mark.parametrize("asked", ["4", "-1", "x", ""])
def test_a_point_that_does_not_exist(train, tmp_path, monkeypatch, asked):
    monkeypatch.setenv("VDSR_POINT", asked)
    result = train(tmp_path, *SWEEP)
    assert (result.status, result.err) == (1, f"error: VDSR_POINT={asked}: the sweep has the points 0 to 3\n")


def test_a_point_that_fails_fails_its_process(train, tmp_path, monkeypatch):
    monkeypatch.setenv("VDSR_POINT", "1")
    result = train(tmp_path, "model.depth=3,0", "-m")
    assert result.status == 1
    assert "this point failed" in result.out
    assert (tmp_path / "runs/smoke/mine/sweep.csv").exists()


def test_another_rank_leaves_the_table_to_the_first(train, tmp_path, monkeypatch):
    monkeypatch.setenv("VDSR_POINT", "1")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr("vdsr.sweep.report", lambda folder: pytest.fail("reported"))
    train(tmp_path, "model.depth=3,0", "-m")
