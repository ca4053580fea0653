import csv
import logging

import pytest
from omegaconf import OmegaConf
from PIL import Image

from vdsr import records
from vdsr.errors import InputError
from vdsr.sweep import SweepReport, report


def finished(depth, seconds, **psnr):
    figures = {
        f"x{scale[1:]}": {"psnr": value, "ssim": 0.9, "bicubic_psnr": 30.0, "bicubic_ssim": 0.8}
        for scale, value in psnr.items()
    }
    gain = sum(psnr.values()) / len(psnr) - 30
    return {**point(depth), "status": "finished", "metrics": {"val": figures}, "gain": gain, "seconds": seconds}


def failed(depth, **changes):
    return {**point(depth), "status": "failed", "error": "RuntimeError: out of memory", "seconds": 0.0, **changes}


def point(depth):
    return {
        "format": 1,
        "name": "depth_sweep",
        "config": {"model": {"depth": depth}, "data": {"scales": [2, 3]}, "seed": 0},
        "overrides": ["+experiment=depth_sweep", f"model.depth={depth}"],
    }


@pytest.fixture
def lay(tmp_path):
    """Write records into the folders of a sweep's points."""

    def make(*found):
        for number, record in enumerate(found):
            (tmp_path / f"point-{number}").mkdir()
            records.write_json(tmp_path / f"point-{number}" / "record.json", record)
        return tmp_path

    return make


def table(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_one_row_a_point_with_the_swept_keys_first(lay, capsys):
    folder = lay(finished(5, 61.4, x2=31.0, x3=30.5), finished(10, 99.6, x2=31.128, x3=29.7))
    assert report(folder) == 0
    assert table(folder) == [
        ["model.depth", "status", "val ×2", "val ×3", "gain", "seconds"],
        ["5", "finished", "31.00", "30.50", "+0.75", "61"],
        ["10", "finished", "31.13", "29.70", "+0.41", "100"],
    ]
    printed = capsys.readouterr().out
    assert "depth_sweep: PSNR in dB, gain over bicubic" in printed
    assert "31.13" in printed


def test_the_picture_is_there_and_whole(lay):
    folder = lay(finished(5, 1, x2=31.0), finished(10, 1, x2=32.0))
    report(folder)
    with Image.open(folder / "sweep.png") as picture:
        picture.load()
        assert min(picture.size) > 300
        assert len(picture.convert("L").getcolors()) > 10
    assert sorted(p.name for p in folder.iterdir()) == ["point-0", "point-1", "sweep.csv", "sweep.png"]


def test_failed_points_stay_in_the_table_and_are_counted(lay, caplog):
    folder = lay(finished(5, 60, x2=31.0), failed(10), failed(20, status="diverged", error="the loss is nan"))
    with caplog.at_level(logging.WARNING):
        assert report(folder) == 2
    assert table(folder)[1:] == [
        ["5", "finished", "31.00", "+1.00", "60"],
        ["10", "failed", "", "", "0"],
        ["20", "diverged", "", "", "0"],
    ]
    assert "+experiment=depth_sweep, model.depth=10: failed: RuntimeError: out of memory" in caplog.text
    assert "model.depth=20: diverged: the loss is nan" in caplog.text
    assert (folder / "sweep.png").exists()


def test_a_sweep_of_which_every_point_failed_still_has_its_table(lay):
    folder = lay(failed(5), failed(10))
    assert report(folder) == 2
    assert table(folder) == [
        ["model.depth", "status", "gain", "seconds"],
        ["5", "failed", "", "0"],
        ["10", "failed", "", "0"],
    ]
    assert (folder / "sweep.png").exists()


def test_a_point_without_figures_is_left_blank(lay):
    unlimited = finished(10, 1, x2=31.0)
    unlimited["metrics"]["val"]["x2"]["psnr"] = float("inf")  # a network without error; null in JSON
    unlimited["gain"] = float("inf")
    folder = lay(finished(5, 1, x2=31.0), unlimited)
    assert report(folder) == 0
    assert table(folder)[2] == ["10", "finished", "", "", "1"]


def test_no_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run left a record"):
        report(tmp_path)


def test_a_damaged_record_is_refused_by_name(lay):
    folder = lay(finished(5, 1, x2=31.0))
    (folder / "point-0" / "record.json").write_text("{")
    with pytest.raises(InputError, match=r"point-0/record.json: no run record, or a damaged one"):
        report(folder)


# --- at the end of a sweep ---


def end(folder):
    SweepReport().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))


def test_a_whole_sweep_ends_well(lay):
    folder = lay(finished(5, 1, x2=31.0), finished(10, 1, x2=31.0))
    end(folder)
    assert len(table(folder)) == 3


def test_a_sweep_with_a_failed_point_exits_with_an_error(lay):
    folder = lay(finished(5, 1, x2=31.0), failed(10))
    with pytest.raises(SystemExit) as caught:
        end(folder)
    assert caught.value.code == f"error: 1 of the sweep's points did not finish; see {folder / 'sweep.csv'}"


def test_a_sweep_without_records_exits_with_an_error(tmp_path):
    with pytest.raises(SystemExit) as caught:
        end(tmp_path)
    assert caught.value.code == f"error: {tmp_path}: no run left a record"
