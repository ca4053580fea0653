import csv
import os
from io import StringIO

import pytest
from rich.console import Console

from vdsr import tables
from vdsr.benchmark import Row

ROWS = [
    Row("set5", "bird", 2.0, 37.5319, 0.95871, 33.661, 0.92988),
    Row("set14", "baboon", 2.5, 25.104, 0.83149, 25.5, 0.86821),
]


def lines(table):
    stream = StringIO()
    Console(file=stream, width=200).print(table)
    return [line.replace("│", " ").split() for line in stream.getvalue().splitlines()]


def test_scores_in_two_and_four_decimals_with_the_gain():
    printed = lines(tables.scores(ROWS, "a title"))
    assert ["a", "title"] in printed
    assert ["set5", "×2", "37.53", "0.9587", "33.66", "0.9299", "+3.87"] in printed
    assert ["set14", "×2.5", "25.10", "0.8315", "25.50", "0.8682", "-0.40"] in printed


def test_images_have_a_column_only_on_request():
    assert ["set5", "bird", "×2", "37.53", "0.9587", "33.66", "0.9299", "+3.87"] in lines(
        tables.scores(ROWS, "", images=True)
    )
    assert not any("bird" in line for line in lines(tables.scores(ROWS, "")))


def test_a_record_s_table():
    figures = {"psnr": 30.0, "ssim": 0.9, "bicubic_psnr": 29.5, "bicubic_ssim": 0.8}
    record = {
        "name": "train",
        "steps": 1000,
        "seconds": 61.7,
        "network": {"parameters": 665921},
        "metrics": {"val": {"x2": figures, "x2.5": {**figures, "psnr": 29.0}}},
    }
    printed = lines(tables.benchmark(record))
    assert ["train:", "1000", "steps", "in", "62", "s,", "665,921", "weights"] in printed
    assert ["val", "×2", "30.00", "0.9000", "29.50", "0.8000", "+0.50"] in printed
    assert ["val", "×2.5", "29.00", "0.9000", "29.50", "0.8000", "-0.50"] in printed


def test_csv_has_every_digit(tmp_path):
    tables.write_csv(tmp_path / "scores.csv", ROWS)
    with (tmp_path / "scores.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "set": "set5",
        "image": "bird",
        "scale": "2.0",
        "psnr": "37.5319",
        "ssim": "0.95871",
        "bicubic_psnr": "33.661",
        "bicubic_ssim": "0.92988",
    }
    assert second["scale"] == "2.5"


def test_a_failed_csv_leaves_the_old_one(tmp_path, monkeypatch):
    tables.write_csv(tmp_path / "scores.csv", ROWS)
    before = (tmp_path / "scores.csv").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        tables.write_csv(tmp_path / "scores.csv", ROWS[:1])
    assert (tmp_path / "scores.csv").read_text() == before
    assert os.listdir(tmp_path) == ["scores.csv"]
