import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vdsr import cli
from vdsr.cli import LONGEST_NAME, explain, run_id, sweep_id
from vdsr.errors import InputError

CONF = str(Path(__file__).parents[2] / "conf")


@pytest.fixture
def composed():
    """Compose conf/train.yaml with some overrides."""
    cli.register_resolvers()

    def make(*overrides):
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("train", list(overrides))

    return make


# --- names ---


def test_a_run_is_named_by_its_overrides_and_seed():
    assert run_id("model.depth=5_optim.lr=0.01", 3) == "model.depth-5_optim.lr-0.01_seed-3"
    assert run_id("", 0) == "seed-0"


def test_the_same_command_has_the_same_name_in_another_process():
    overrides = "data.train=/some/where " + "very" * 60
    code = f"from vdsr.cli import run_id; print(run_id({overrides!r}, 1))"
    path = os.pathsep.join([str(Path(CONF).parent / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "11"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == run_id(overrides, 1)


def test_a_name_is_one_folder():
    name = run_id("data.val=[/data/set5,../set14]_clip.x='a b'", 0)
    assert name == "data.val-data-set5-..-set14_clip.x-a-b_seed-0"


def test_a_long_name_is_cut_and_hashed():
    long = "data.train=" + "x" * 200
    name = run_id(long, 0)
    assert len(name) == LONGEST_NAME
    assert re.fullmatch(r"data\.train-x+-[0-9a-f]{10}", name)
    assert run_id(long, 0) == name != run_id(long, 1)
    assert run_id("x" * (LONGEST_NAME - 7), 0) == "x" * (LONGEST_NAME - 7) + "_seed-0"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["+experiment=depth_sweep"], "default"),
        (["-m", "model.depth=5,10", "optim.lr=0.1"], "model.depth-5-10_optim.lr-0.1"),
        (["name=mine", "paths.runs=/tmp/x", "hydra.mode=RUN", "hydra/launcher=basic", "seed=0,1"], "seed-0-1"),
    ],
)
def test_a_sweep_is_named_by_its_command(monkeypatch, arguments, name):
    monkeypatch.setenv("VDSR_SWEEP", "")
    monkeypatch.delenv("VDSR_SWEEP")
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert sweep_id() == name
    monkeypatch.setattr(sys, "argv", ["train.py", "something=else"])  # its points learn it by the environment
    assert sweep_id() == name == os.environ["VDSR_SWEEP"]


# --- errors for people ---


def explanation(compose_and_build):
    with pytest.raises(Exception, match=r".") as caught:
        compose_and_build()
    line = explain(caught.value)
    assert line
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("override", "wrong", "nearest"),
    [
        ("model.dept=3", "dept", "depth"),
        ("modle.depth=3", "modle", "model"),
        ("trainer.max_step=5", "max_step", "max_steps"),
        ("data.batchsize=5", "batchsize", "batch_size"),
        ("clip.tetha=1", "tetha", "theta"),
    ],
)
def test_an_unknown_key_gives_the_nearest_name(composed, override, wrong, nearest):
    line = explanation(lambda: composed(override))
    assert line.endswith(f"there is no key '{wrong}' (did you mean '{nearest}'?)")


def test_a_key_near_to_none_lists_what_there_is(composed):
    line = explanation(lambda: composed("clip.qqq=1"))
    assert line.endswith("there is no key 'qqq' (there are: _target_, theta)")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model=vdrs", "vdsr"),
        ("budget=quik", "quick"),
        ("+experiment=dept_sweep", "depth_sweep"),
        ("data=train92", "train91"),
    ],
)
def test_an_unknown_option_gives_the_nearest_one(composed, override, nearest):
    line = explanation(lambda: composed(override))
    assert "Could not find" in line
    assert line.endswith(f"(did you mean '{nearest}'?)")


@pytest.mark.parametrize("override", ["model.depth", "data.scales=[2"])
def test_an_override_that_does_not_parse_is_a_line(composed, override):
    explanation(lambda: composed(override))


def test_bad_input_found_while_building_is_its_own_line(composed):
    line = explanation(lambda: instantiate(composed("model.depth=1").model))
    assert line == "depth 1: a network has at least 2 layers; the paper's has 20 (model.depth=20)"


def test_bad_input_is_its_own_line():
    assert (
        explain(InputError("scale 0: give a whole number or simple fraction above 1"))
        == "scale 0: give a whole number or simple fraction above 1"
    )


def test_a_value_that_is_missing_is_named():
    cfg = OmegaConf.create({"data": {"name": "???"}})
    assert explanation(lambda: cfg.data.name) == "data.name has no value: give data.name=…"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_full_or_forbidden_disk_is_a_line(number):
    error = OSError(number, os.strerror(number), "/data/x")
    advice = "free space or name another folder (paths.data=…, paths.runs=…)"
    assert explain(error) == f"/data/x: {os.strerror(number)}; {advice}"
    assert explain(OSError(number, os.strerror(number))) == f"{os.strerror(number)}; {advice}"


@pytest.mark.parametrize(
    "bug", [ValueError("x"), KeyError("x"), RuntimeError("x"), OSError(errno.EBADF, "x"), AssertionError()]
)
def test_a_bug_of_ours_is_not_explained_away(bug):
    assert explain(bug) is None
