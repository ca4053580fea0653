import json
import math
import os
import subprocess

import numpy as np
import pytest

from vdsr import records
from vdsr.errors import InputError


def record(**changes):
    return {"format": 1, "config": {"model": {"depth": 5}, "seed": 0}, "overrides": [], **changes}


# --- writing ---


def test_not_a_number_and_infinity_become_null(tmp_path):
    path = tmp_path / "record.json"
    curve = [{"loss": math.nan}, (math.inf, -math.inf, 1.5), np.float64("nan")]
    records.write_json(path, {"curve": curve, 3: True, "none": None, "×": "γ"})
    plain = {"curve": [{"loss": None}, [None, None, 1.5], None], "3": True, "none": None, "×": "γ"}
    assert json.loads(path.read_text()) == plain
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("failing", ["replace", "content"])
def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "record.json"
    records.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    if failing == "replace":
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises((OSError, TypeError)):
        records.write_json(path, {"a": 2 if failing == "replace" else object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["record.json"]


# --- reading ---


def test_a_record_is_read_as_it_was_written(tmp_path):
    records.write_json(tmp_path / "record.json", record(psnr=31.25))
    assert records.read(tmp_path / "record.json") == record(psnr=31.25)


@pytest.mark.parametrize("left", [0, 1, 10, -3])
def test_a_record_cut_off_is_refused(tmp_path, left):
    path = tmp_path / "record.json"
    records.write_json(path, record())
    path.write_text(path.read_text()[:left])
    with pytest.raises(InputError, match=r"no run record, or a damaged one \(JSONDecodeError\); run again"):
        records.read(path)


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", "{}", '{"format": 1}', '{"format": 1, "config": 3}', '{"format": "x", "config": {}}']
)
def test_something_else_than_a_record_is_refused(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        records.read(path)
    assert str(caught.value).startswith(f"{path}: no run record, or a damaged one")


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"damaged one \(FileNotFoundError\)"):
        records.read(tmp_path / "record.json")


def test_a_newer_format_is_refused(tmp_path):
    records.write_json(tmp_path / "record.json", record(format=2))
    with pytest.raises(InputError, match=r"format 2 is newer than this version reads \(1\); update"):
        records.read(tmp_path / "record.json")


def test_all_records_below_a_folder_in_order(tmp_path):
    for name in ("b", "a/deep", "c"):
        (tmp_path / name).mkdir(parents=True)
        records.write_json(tmp_path / name / "record.json", record(name=name))
    assert [r["name"] for r in records.read_all(tmp_path)] == ["a/deep", "b", "c"]
    assert records.read_all(tmp_path / "b" / "none") == []


# --- comparing ---


def test_differences_are_named_by_dotted_key():
    old = {"model": {"depth": 5, "width": 64}, "scales": [2, 3], "logger": {}, "seed": 0, "gone": None}
    new = {"model": {"depth": 8, "width": 64}, "scales": [2, 3, 4], "logger": {"wandb": {"id": 1}}, "seed": 0}
    assert records.differences(old, new) == {
        "model.depth": (5, 8),
        "scales": ([2, 3], [2, 3, 4]),
        "logger": ({}, None),
        "logger.wandb.id": (None, 1),
    }
    assert records.differences(new, new) == {}


def test_swept_keys_are_the_overridden_ones_that_vary():
    def point(depth, scales, *overrides):
        config = {"model": {"depth": depth}, "data": {"scales": scales}, "seed": depth}
        return record(config=config, overrides=[*overrides, f"model.depth={depth}"])

    found = [
        point(5, [2], "data.scales=[2]", "+experiment=depth_sweep", "name=x"),
        point(10, [2], "data.scales=[2]", "+experiment=depth_sweep", "name=x"),
        point(10, [3], "data.scales=[3]"),
    ]
    assert records.swept(found) == ["data.scales", "model.depth"]
    assert records.swept(found[:2]) == ["model.depth"]
    assert records.swept(found[:1]) == []


def test_a_group_is_swept_by_the_names_of_its_options():
    def point(option, seed):
        config = {"data": {"train": option, "seed": seed}, "seed": seed}  # a group that holds what else is swept
        return record(config=config, overrides=[f"data={option}", f"seed={seed}"])

    assert records.swept([point("a", 0), point("a", 1)]) == ["seed"]
    assert records.swept([point("a", 0), point("b", 0)]) == ["data"]
    assert records.setting(point("b", 0), "data") == "b"
    assert records.setting(point("b", 2), "data.seed") == 2
    assert records.setting(record(config={"data": {}}, overrides=[]), "data") is None


def test_lookup():
    config = {"a": {"b": {"c": 3}, "none": None}}
    assert records.lookup(config, "a.b.c") == 3
    assert records.lookup(config, "a.b") == {"c": 3}
    assert [records.lookup(config, key) for key in ("a.none", "a.x", "a.b.c.d", "z")] == [None] * 4


# --- provenance ---


def test_provenance_names_commit_and_versions(monkeypatch):
    answers = {"rev-parse": "abc123\n", "status": ""}

    def git(command, **_):
        return subprocess.CompletedProcess(command, 0, answers[command[1]], "")

    monkeypatch.setattr(records.subprocess, "run", git)
    found = records.provenance()
    assert found["commit"] == "abc123"
    assert {"python", "torch", "numpy", "pytorch-lightning"} <= found["versions"].keys()
    assert found["versions"]["numpy"] == np.__version__
    answers["status"] = " M src/vdsr/net.py\n"
    assert records.provenance()["commit"] == "abc123-modified"


@pytest.mark.parametrize("outcome", ["no git", "no repository", "hangs"])
def test_without_git_the_commit_is_unknown(monkeypatch, outcome):
    def git(command, **_):
        if outcome == "no git":
            raise FileNotFoundError("git")
        if outcome == "hangs":
            raise subprocess.TimeoutExpired(command, 10)
        return subprocess.CompletedProcess(command, 128, "", "not a git repository")

    monkeypatch.setattr(records.subprocess, "run", git)
    assert records.provenance()["commit"] is None


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(records, "PACKAGES", ("no-such-package", "numpy"))
    assert records.provenance()["versions"].keys() == {"python", "numpy"}
