"""Each kind of bad input ends in one line that names the thing, exit status 1, and nothing half-written."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vdsr import checkpoints, shards, weights
from vdsr.net import VDSR
from vdsr.shards import Sample, sha256

ROOT = Path(__file__).parents[2]


def assert_refused(result, *words):
    assert result.status == 1
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert "Traceback" not in result.out
    for word in words:
        assert str(word) in result.err


def assert_nothing_half_written(folder, statuses=("failed",)):
    """No file that another run or a person could take for a result."""
    for path in folder.rglob("*"):
        assert not path.name.endswith((".tmp", ".partial", ".tmp.png", ".old")), path
        assert path.suffix not in {".safetensors", ".ckpt", ".csv"}, path
        if path.name == "record.json":
            assert json.loads(path.read_text())["status"] in statuses


def encode(pixels, kind="PNG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bad_images(noise):
    """Kind → (file name, its bytes, what the complaint must say)."""
    picture = noise(0, 96, 96, colour=True)
    moving = {"save_all": True, "append_images": [Image.fromarray(picture[::-1].copy())]}
    return {
        "not an image": ("notes.png", b"no picture at all", "is not a PNG"),
        "does not decode": ("cut.png", encode(picture)[:2000], "does not decode"),
        "0 bytes": ("empty.png", b"", "0 bytes"),
        "smaller than the patch": ("small.png", encode(picture[:40]), "96×40 is smaller than 41×41"),
        "animated": ("moving.webp", encode(picture, "WEBP", **moving), "animated"),
        "CMYK": ("cmyk.jpg", encode(picture, "JPEG", "CMYK"), "CMYK"),
    }


# --- images, where they are prepared and where they are used ---


@pytest.mark.parametrize(
    "kind", ["not an image", "does not decode", "0 bytes", "smaller than the patch", "animated", "CMYK"]
)
def test_a_folder_of_one_unusable_image(command, bad_images, tmp_path, kind):
    file, data, complaint = bad_images[kind]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / file).write_bytes(data)
    result = command(tmp_path, "data_prep/prepare.py", "dataset=folder", "source=images", "name=mine")
    assert_refused(result, "images has no usable image")
    assert result.out.startswith(f"left out {file}: ")
    assert complaint in result.out
    assert os.listdir(tmp_path) == ["images"]


def test_a_folder_without_images(command, tmp_path):
    (tmp_path / "images").mkdir()
    result = command(tmp_path, "data_prep/prepare.py", "dataset=folder", "source=images", "name=mine")
    assert_refused(result, "images has no usable image")
    assert os.listdir(tmp_path) == ["images"]


@pytest.mark.parametrize("kind", ["does not decode", "animated", "CMYK"])
def test_an_unusable_image_in_a_whole_shard(train, bad_images, tmp_path, kind):
    file, data, complaint = bad_images[kind]
    sample = Sample("mine-one", "mine", file, 96, 96, "RGB", sha256(data), "0" * 64)
    shards.write(tmp_path / "mine", [sample], lambda _: data, licence="", source="generated")
    assert_refused(train(tmp_path, "data.train=mine"), "mine-one", complaint)
    assert_nothing_half_written(tmp_path / "runs")


def test_training_images_smaller_than_the_patch(train, tmp_path):
    assert_refused(train(tmp_path, "data.patch=97"), "train-t0 (96×96)", "97", "lower data.patch")
    assert_nothing_half_written(tmp_path)


def test_a_benchmark_image_too_small_to_score(command, train, prepare, noise, tmp_path):
    prepare(tmp_path / "data" / "tiny", {"one": noise(0, 16, 40)})
    result = command(tmp_path, "src/evaluate.py", "model=bicubic", "sets=[tiny]", "out=scores")
    assert_refused(result, "tiny-one", "too small to be scored at ×3")
    assert os.listdir(tmp_path) == ["data"]
    # known before training begins, not at the first validation
    assert_refused(train(tmp_path, "data.val=[data/tiny]"), "tiny-one", "too small to be scored at ×3")
    assert_nothing_half_written(tmp_path / "runs")


# --- shards ---


@pytest.mark.parametrize(
    ("script", "overrides", "folder"),
    [
        ("src/train.py", ["data=train291", "logger=none"], "data/train291"),
        ("src/train.py", ["data=folder", "data.train=data/mine", "logger=none"], "data/mine"),
        ("src/evaluate.py", ["model=bicubic", "sets=[set5]"], "data/set5"),
        ("data_prep/verify.py", ["path=data/set14"], "data/set14"),
    ],
)
def test_no_shards_yet(command, tmp_path, script, overrides, folder):
    result = command(tmp_path, script, *overrides)
    assert_refused(result, f"no shards in {folder}", "data_prep/prepare.py")
    assert_nothing_half_written(tmp_path)


def test_a_folder_that_is_not_named(command, tmp_path):
    assert_refused(
        command(tmp_path, "src/train.py", "data=folder", "logger=none"), "data.train has no value: give data.train=…"
    )


def test_no_benchmark_yet(command, tmp_path):
    result = command(tmp_path, "src/evaluate.py", "model=bicubic")
    assert_refused(result, "data: no benchmark is prepared", "prepare.py dataset=set5")
    assert os.listdir(tmp_path) == []


def truncate(shard):
    shard.write_bytes(shard.read_bytes()[:-1000])


def flip_a_bit(shard):
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def add_a_stranger(shard):
    shutil.copy(shard, shard.with_name("stranger.tar"))


DAMAGES = [
    (truncate, "-00000.tar is truncated"),
    (Path.unlink, "-00000.tar is missing"),
    (flip_a_bit, "-00000.tar was changed"),
    (add_a_stranger, "stranger.tar is not in index.json"),
]


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES)
@pytest.mark.parametrize("name", ["train", "val"])
def test_training_on_a_damaged_shard(train, sets, tmp_path, name, damage, complaint):
    shutil.copytree(sets.root / name, tmp_path / name)
    damage(tmp_path / name / f"{name}-00000.tar")
    result = train(tmp_path, f"data.{name}={name if name == 'train' else f'[{name}]'}")
    assert_refused(result, complaint, "prepare it again with `python data_prep/prepare.py dataset=folder")
    assert_nothing_half_written(tmp_path)


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES)
def test_evaluating_on_a_damaged_shard(command, sets, tmp_path, damage, complaint):
    shutil.copytree(sets.root / "val", tmp_path / "data" / "val")
    damage(tmp_path / "data" / "val" / "val-00000.tar")
    assert_refused(command(tmp_path, "src/evaluate.py", "model=bicubic", "sets=[val]", "out=scores"), complaint)
    assert os.listdir(tmp_path) == ["data"]


def test_an_index_that_was_changed(train, sets, tmp_path):
    shutil.copytree(sets.train, tmp_path / "train")
    index = tmp_path / "train" / "index.json"
    content = json.loads(index.read_text())
    content["shards"][0]["sha256"] = "0" * 64
    index.write_text(json.dumps(content))
    assert_refused(train(tmp_path, "data.train=train"), "index.json was changed")
    assert_nothing_half_written(tmp_path)


# --- numbers ---


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.scales=[0]", ["scale 0"]),
        ("data.scales=[-2]", ["scale -2"]),
        ("data.scales=[x]", ["scale 'x'"]),
        ("data.scales=[2,1]", ["scale 1"]),
        ("data.val_scales=[0]", ["scale 0"]),
        ("data.scales=[]", ["data.scales is empty"]),
        ("data.val_scales=[]", ["data.val_scales is empty"]),
        ("data.scales=3", ["data.scales=3", "give a list"]),
        ("model.depth=1", ["depth 1", "at least 2"]),
        ("model.depth=0", ["depth 0", "at least 2"]),
        ("model.width=0", ["width 0", "at least 1"]),
        ("data.batch_size=1000", ["gives 16 patches", "a batch of 1000 needs 1000", "lower data.batch_size"]),
        ("data.batch_size=0", ["data.batch_size=0", "1 or more"]),
        ("data.patch=abc", ["data.patch=abc", "whole number"]),
        ("seed=-1", ["seed=-1", "0 or more"]),
        ("optim.lr=high", ["optim.lr=high", "above 0"]),
        ("trainer.max_steps=-1", ["trainer.max_steps=-1", "1 or more"]),
        ("trainer.log_every_n_steps=0", ["trainer.log_every_n_steps=0", "1 or more"]),
        ("trainer.precision=foo", ["trainer: ", "foo"]),
        ("+trainer.foo=1", ["trainer: ", "foo"]),
        ("data.train=null", ["data.train has no value"]),
        ("model.depth=deep", ["depth deep"]),
        ("clip.theta=0", ["θ 0", "above 0"]),
    ],
)
def test_a_setting_that_cannot_be(train, tmp_path, override, words):
    assert_refused(train(tmp_path, override), *words)
    assert_nothing_half_written(tmp_path)


def test_a_network_without_weights_cannot_be_trained(command, sets, tmp_path):
    arguments = ["model=bicubic", "logger=none", f"data.train={sets.train}", f"data.val=[{sets.val}]"]
    assert_refused(command(tmp_path, "src/train.py", *arguments, "data.patch=16"), "Bicubic has nothing to train")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sets=[]", ["sets is empty"]),
        ("accelerator=quantum", ["accelerator=quantum", "auto, cpu and cuda"]),
        ("pictures=many", ["pictures=many", "whole number"]),
        ("model=srcnn", ["an untrained network has no scores"]),
    ],
)
def test_an_evaluation_that_cannot_be(command, sets, tmp_path, setting, words):
    model = [] if setting.startswith("model") else ["model=bicubic"]
    assert_refused(command(tmp_path, "src/evaluate.py", *model, f"paths.data={sets.root}", setting), *words)


@pytest.mark.parametrize(
    ("scales", "words"),
    [("[0]", "scale 0"), ("[-2]", "scale -2"), ("[x]", "scale 'x'"), ("[]", "scales is empty"), ("x", "scales=x")],
)
def test_evaluating_at_an_impossible_scale(command, sets, tmp_path, scales, words):
    arguments = ["model=bicubic", f"paths.data={sets.root}", "sets=[val]", f"scales={scales}", "out=scores"]
    assert_refused(command(tmp_path, "src/evaluate.py", *arguments), words)
    assert os.listdir(tmp_path) == []


# --- weights and checkpoints ---


class Executes:
    """Unpickling it makes a folder, which shows that it was executed."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def files(run_dir, tmp_path):
    """Kind → bytes of a file that is not the weights of a network of ours."""
    good = {suffix: next(run_dir.rglob(f"*{suffix}")).read_bytes() for suffix in (".safetensors", ".ckpt")}
    deeper = weights.save(VDSR(4, 8), tmp_path / "deeper.safetensors").read_bytes()
    buffers = {"foreign": io.BytesIO(), "archived pickle": io.BytesIO()}
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, buffers["foreign"])
    torch.save({"state_dict": Executes(tmp_path / "executed")}, buffers["archived pickle"])
    (tmp_path / "deeper.safetensors").unlink()
    return {
        "other depth": deeper.replace(b'\\"depth\\": 4', b'\\"depth\\": 3'),
        "picture": encode(np.zeros((9, 9, 3), np.uint8)),
        "text": b"weights, honestly\n",
        "empty": b"",
        "truncated weights": good[".safetensors"][:-100],
        "truncated header": good[".safetensors"][:50],
        "truncated checkpoint": good[".ckpt"][: len(good[".ckpt"]) // 2],
        "foreign": buffers["foreign"].getvalue(),
        "pickle": pickle.dumps(Executes(tmp_path / "executed")),
        "archived pickle": buffers["archived pickle"].getvalue(),
    }


@pytest.mark.parametrize(
    ("kind", "suffix", "complaint"),
    [
        ("other depth", ".safetensors", "does not fit the VDSR"),
        ("picture", ".safetensors", "no safetensors file"),
        ("picture", ".png", "not loaded"),
        ("text", ".safetensors", "no safetensors file"),
        ("text", ".ckpt", "not loaded"),
        ("empty", ".safetensors", "no safetensors file"),
        ("empty", ".ckpt", "no checkpoint"),
        ("truncated weights", ".safetensors", "damaged"),
        ("truncated header", ".safetensors", "damaged"),
        ("truncated checkpoint", ".ckpt", "damaged"),
        ("foreign", ".pth", "not a checkpoint of this project"),
        ("pickle", ".ckpt", "not loaded"),
        ("pickle", ".safetensors", "no safetensors file"),
        ("archived pickle", ".ckpt", "not loaded"),
        ("archived pickle", ".pt", "not loaded"),
    ],
)
def test_evaluating_the_wrong_weights(command, sets, files, tmp_path, kind, suffix, complaint):
    (tmp_path / f"given{suffix}").write_bytes(files[kind])
    arguments = [f"weights=given{suffix}", f"paths.data={sets.root}", "sets=[val]", "out=scores"]
    assert_refused(command(tmp_path, "src/evaluate.py", *arguments), f"given{suffix}: ", complaint)
    assert os.listdir(tmp_path) == [f"given{suffix}"]  # nothing written, nothing executed


def test_the_pickles_would_execute(files, tmp_path):
    pickle.loads(files["pickle"])
    (tmp_path / "executed").rmdir()
    torch.load(io.BytesIO(files["archived pickle"]), weights_only=False)
    assert (tmp_path / "executed").is_dir()


def test_weights_that_are_not_there(command, tmp_path):
    assert_refused(command(tmp_path, "src/evaluate.py", "weights=none.ckpt"), "none.ckpt: no such weights file")


@pytest.mark.parametrize("arguments", [[], ["model=bicubic", "weights=some.ckpt"]])
def test_evaluating_nothing_or_two_things(command, tmp_path, arguments):
    assert_refused(
        command(tmp_path, "src/evaluate.py", *arguments), "weights=NAME or FILE, or model=bicubic, and not both"
    )


@pytest.mark.parametrize("kind", ["picture", "text", "empty", "truncated checkpoint", "pickle"])
def test_a_damaged_checkpoint_with_none_before_it_is_set_aside(train, files, tmp_path, kind):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(files[kind])
    result = train(tmp_path, "hydra.run.dir=run")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[0].startswith("run/checkpoints/last.ckpt is damaged (")
    assert "continuing" not in result.out
    assert last.with_name("last.ckpt.damaged").read_bytes() == files[kind]
    assert os.listdir(tmp_path) == ["run"]  # nothing executed


@pytest.mark.parametrize("kind", ["foreign", "archived pickle"])
def test_continuing_from_the_wrong_checkpoint(train, files, tmp_path, kind):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(files[kind])
    assert_refused(train(tmp_path, "hydra.run.dir=run"), "run/checkpoints/last.ckpt: ")
    assert last.read_bytes() == files[kind]
    last.unlink()
    assert_nothing_half_written(tmp_path)
    assert os.listdir(tmp_path) == ["run"]  # nothing executed


def test_continuing_from_a_network_of_another_depth(train, run_dir, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    shutil.copy(run_dir / "checkpoints" / "last.ckpt", last)
    assert_refused(train(tmp_path, "hydra.run.dir=run", "model.depth=4"), "run/checkpoints/last.ckpt", "depth")
    last.unlink()
    assert_nothing_half_written(tmp_path)


def test_the_folder_of_another_run(train, run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    kept = {
        path: path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.suffix in (".safetensors", ".ckpt") or path.name == "record.json"
    }
    assert len(kept) == 5
    result = train(tmp_path, "hydra.run.dir=run", "model.depth=4")
    assert_refused(result, "run holds a run of another configuration", "model.depth: 3 → 4")
    assert {path: path.read_bytes() for path in kept} == kept


# --- folders that cannot be written ---


@pytest.mark.parametrize("place", ["below a file", "read-only"])
def test_a_folder_that_cannot_be_written(command, train, sets, disk, tmp_path, place):
    if place == "read-only":
        folder, reason = disk("ro"), "Read-only file system"
    else:
        folder, reason = tmp_path / "file", "Not a directory"
        folder.write_text("")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(encode(np.zeros((48, 48, 3), np.uint8)))
    small = [f"paths.data={sets.root}", "sets=[val]", "scales=[3]"]
    own = ["dataset=folder", "source=images", "name=mine"]
    for result in (
        train(tmp_path, f"paths.runs={folder}/runs"),
        command(tmp_path, "src/evaluate.py", "model=bicubic", *small, f"out={folder}/scores"),
        command(tmp_path, "data_prep/prepare.py", *own, f"paths.data={folder}/data"),
    ):
        assert_refused(result, folder, reason)
    assert sorted(path.name for path in tmp_path.iterdir() if path != folder) == ["images"]


@pytest.mark.parametrize("kilobytes", [4, 16, 40, 120, 300, 700])
def test_the_disk_is_full_while_training(train, disk, kilobytes):
    folder = disk(f"size={kilobytes}k")
    assert_refused(train(folder.parent, f"paths.runs={folder}", "model.width=64"), "No space left on device")
    for checkpoint in folder.rglob("*.ckpt"):
        checkpoints.read(checkpoint)  # whole, or not there
        checkpoint.unlink()
    assert_nothing_half_written(folder, statuses=("failed", "running"))  # no space to say that it failed


def test_the_disk_is_full_while_writing_scores(command, sets, disk):
    folder = disk("size=20k")
    arguments = [f"paths.data={sets.root}", "sets=[val]", "scales=[3]", "pictures=1"]
    result = command(folder.parent, "src/evaluate.py", "model=bicubic", *arguments, f"out={folder}/scores")
    assert_refused(result, "No space left on device")
    assert not list(folder.rglob("*.tmp*"))


def test_the_disk_is_full_while_preparing(command, noise, disk, tmp_path):
    folder = disk("size=100k")
    (tmp_path / "images").mkdir()
    for seed in range(8):
        (tmp_path / "images" / f"{seed}.png").write_bytes(encode(noise(seed, 96, 96, colour=True)))
    arguments = ["dataset=folder", "source=images", "name=mine", f"paths.data={folder}"]
    assert_refused(command(tmp_path, "data_prep/prepare.py", *arguments), "No space left on device")
    assert not (folder / "mine").exists()


# --- the real thing, once ---


def test_a_process_of_its_own_ends_with_one_line_and_status_1(sets, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    arguments = [
        "+experiment=smoke",
        "logger=none",
        f"data.train={sets.train}",
        f"data.val=[{sets.val}]",
        "model.depth=1",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "src" / "train.py", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "error: depth 1: a network has at least 2 layers; the paper's has 20 (model.depth=20)\n"
    assert_nothing_half_written(tmp_path)
