"""RESULTS.md is what the committed records say; the command on real runs; bad input."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from vdsr import weights
from vdsr.net import SRCNN, VDSR

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "RESULTS.md"


@pytest.fixture
def report(command, tmp_path):
    def run(*overrides):
        return command(tmp_path, "src/report.py", *overrides)

    return run


def test_the_committed_records_make_the_committed_document(report, tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    done = report()
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "RESULTS.md").read_bytes() == RESULTS.read_bytes()
    shown = set(re.findall(r"!\[[^\]]*\]\(([^)]*)\)", RESULTS.read_text(encoding="utf-8")))
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("docs/results/*")}
    assert shown == made
    assert shown == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/results/*")}


@pytest.mark.slow
def test_a_real_run_is_reported(report, run_dir, tmp_path):
    done = report(f"records={run_dir.parent}", "out=made/RESULTS.md", "pictures=made/pictures")
    assert (done.status, done.err) == (0, "")
    text = (tmp_path / "made" / "RESULTS.md").read_text(encoding="utf-8")
    (row,) = re.findall(
        r"^\| smoke \| VDSR \| (.*) \| 0\.0025 % of the paper's patches \| (.*) \|$", text, re.MULTILINE
    )
    assert re.fullmatch(r"\d+\.\d\d \([+-]\d+\.\d\d\)", row[0])
    assert "4 steps × 4: 0.0025 % of the paper's patches" in text
    assert "32-true" in text
    assert re.search(r"`python src/train.py \+experiment=smoke hydra.mode=RUN .*`", text)


@pytest.mark.slow
def test_the_record_says_what_an_image_takes(run_dir):
    from vdsr import records

    record = records.read(run_dir / "record.json")
    assert record["precision"] == "32-true"
    assert record["inference"]["set"] == "val"
    assert 0 < record["inference"]["seconds_per_image"] < 60


@pytest.fixture
def benchmarks(tmp_path, prepare, structured):
    for name in ("set5", "set14"):
        prepare(tmp_path / "data" / name, {f"{name}-{seed}": structured(seed, 60, 60) for seed in range(2)})
    torch.manual_seed(0)
    weights.save(VDSR(3, 4), tmp_path / "vdsr.safetensors")
    weights.save(SRCNN(), tmp_path / "srcnn.safetensors")
    (tmp_path / "results").mkdir()


def test_crops_compare_the_networks_picture_by_picture(report, benchmarks, tmp_path):
    alone = report("crops=one", "vdsr=vdsr.safetensors")
    assert (alone.status, alone.err) == (0, "")
    both = report("crops=two", "vdsr=vdsr.safetensors", "srcnn=srcnn.safetensors")
    assert (both.status, both.err) == (0, "")
    names = {"one": [], "two": []}
    for folder, found in names.items():
        for path in sorted((tmp_path / folder).rglob("*")):
            if path.is_file():
                found.append(path.relative_to(tmp_path / folder).as_posix())
    expected = [f"{name}/{name}-{name}-{seed}.png" for name in ("set14", "set5") for seed in range(2)]
    assert names == {"one": expected, "two": expected}
    widths = []
    for folder in names:
        with Image.open(tmp_path / folder / expected[0]) as picture:
            widths.append(picture.width)
    assert widths[1] == pytest.approx(widths[0] * 4 / 3, abs=3)  # a column more


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["records=none"], "none: no such folder of run records"),
        (["records=cut"], "cut/x/0.json: no run record, or a damaged one"),
        (["crops=c"], "give vdsr=FILE, or srcnn=FILE, or both"),
        (["crops=c", "vdsr=none.safetensors"], "none.safetensors: no such weights file"),
        (["crops=c", "vdsr=v.safetensors", "paths.data=nowhere"], "nowhere/set5"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_line(report, tmp_path, overrides, words):
    (tmp_path / "cut" / "x").mkdir(parents=True)
    (tmp_path / "cut" / "x" / "0.json").write_text('{"format": 1, "name": "paper", "conf')
    (tmp_path / "results").mkdir()
    weights.save(VDSR(3, 4), tmp_path / "v.safetensors")
    done = report(*overrides)
    assert done.status == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    left = {path.name for path in tmp_path.iterdir()} - {"cut", "results", "v.safetensors"}
    assert left <= {"RESULTS.md"}  # the document is whole even where the comparisons cannot be drawn
    assert (left == set()) == ("records" in overrides[0])
