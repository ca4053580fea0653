import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vdsr import weights
from vdsr.checkpoints import SPEC
from vdsr.errors import InputError
from vdsr.net import SRCNN, VDSR


@pytest.fixture
def net():
    torch.manual_seed(0)
    return VDSR(4, 6, residual=False)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def broken(net, tmp_path):
    """A weights file whose metadata are the given ones beside a right spec and format."""

    def make(**metadata):
        path = tmp_path / "weights.safetensors"
        described = {SPEC: json.dumps(net.spec()), "format": "1", **metadata}
        save_file(net.state_dict(), path, metadata={k: v for k, v in described.items() if v is not None})
        return path

    return make


def refused(path):
    with pytest.raises(InputError) as caught:
        weights.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_what_was_saved_is_loaded_bit_for_bit(net, tmp_path):
    path = weights.save(net, tmp_path / "weights.safetensors")
    again = weights.load(path)
    assert again.spec() == net.spec() == {"name": "VDSR", "depth": 4, "width": 6, "residual": False}
    assert same(again.state_dict(), net.state_dict())
    assert not again.training
    assert os.listdir(tmp_path) == ["weights.safetensors"]


def test_layout_and_precision_of_training_leave_no_trace(net, tmp_path):
    odd = VDSR(4, 6, residual=False).to(memory_format=torch.channels_last, dtype=torch.float64)
    odd.load_state_dict(net.state_dict())
    stored = load_file(weights.save(odd, tmp_path / "w.safetensors"))
    assert same(stored, net.state_dict())
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_metadata_say_what_made_the_weights(net, tmp_path):
    path = weights.save(net, tmp_path / "w.safetensors", scales=[2.0, 3.0], steps=7, data="ab12")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata.pop(SPEC)) == net.spec()
    assert metadata == {"format": "1", "scales": "[2.0, 3.0]", "steps": "7", "data": "ab12"}


def test_a_checkpoint_of_a_run_is_loaded_too(net, tmp_path):
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({SPEC: net.spec(), "state_dict": state, "global_step": 3}, tmp_path / "last.ckpt")
    assert same(weights.load(tmp_path / "last.ckpt").state_dict(), net.state_dict())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(net, tmp_path, monkeypatch):
    path = weights.save(net, tmp_path / "w.safetensors")
    before = path.read_bytes()

    def half(target, data):
        with target.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError, match=f"^{path}: No space left on device; free space or name another folder$"):
        weights.save(VDSR(2, 2), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_saved_weights_are_for_whoever_may_read_files_here(net, tmp_path):
    (tmp_path / "other").touch()
    path = weights.save(net, tmp_path / "w.safetensors")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_network_that_comes_with_the_repository():
    assert weights.DEFAULT in weights.names()
    net = weights.load(weights.find(weights.DEFAULT))
    assert net.spec() == {"name": "VDSR", "depth": 20, "width": 64, "residual": True}


def test_the_scales_it_was_trained_at(net, broken, tmp_path):
    assert weights.trained_at(weights.find(weights.DEFAULT)) == (2, 3, 4)
    assert weights.trained_at(weights.save(net, tmp_path / "w.safetensors", scales=[3.0, 2.0])) == (2, 3)
    assert weights.trained_at(weights.save(net, tmp_path / "w.safetensors")) == ()
    assert weights.trained_at(tmp_path / "last.ckpt") == ()
    for scales in ("[", "3", '["large"]', "[0.5]", "[[2]]", "null"):
        with pytest.raises(InputError, match=r"safetensors: its scales cannot be read"):
            weights.trained_at(broken(scales=scales))


# --- files that are not what they should be ---


def test_a_missing_file(tmp_path):
    assert refused(tmp_path / "none.safetensors") == "no such weights file"
    assert refused(tmp_path) == "no such weights file"


@pytest.mark.parametrize("left", [0, 4, 100, 0.9])
def test_a_truncated_file(net, tmp_path, left):
    path = weights.save(net, tmp_path / "w.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if left < 1 else left])
    assert refused(path).startswith("damaged or no safetensors file (")


@pytest.mark.parametrize("content", [b"not weights\n", b"\x80\x02}q\x00.", b"PK\x03\x04rubbish", b"\0" * 64])
def test_a_file_of_another_type(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    assert refused(tmp_path / "w.safetensors").startswith("damaged or no safetensors file (")


def test_somebody_else_s_safetensors(broken):
    assert refused(broken(**{SPEC: None})) == "carries no network description: not weights of this project"


def test_a_newer_format(broken):
    assert refused(broken(format="2")) == "format 2 is newer than this version reads (1); update"


def test_another_depth(broken, net):
    complaint = refused(broken(**{SPEC: json.dumps({**net.spec(), "depth": 5})}))
    assert complaint.startswith("does not fit the VDSR it names: ")
    assert "body.8.weight" in complaint


def test_another_network(broken):
    complaint = refused(broken(**{SPEC: json.dumps(SRCNN().spec())}))
    assert complaint.startswith("does not fit the SRCNN it names: ")


def test_an_unknown_network(broken):
    path = broken(**{SPEC: '{"name": "EDSR"}'})
    with pytest.raises(InputError, match="no network named 'EDSR'; there are VDSR, SRCNN, Bicubic"):
        weights.load(path)


@pytest.mark.parametrize("metadata", [{SPEC: "{"}, {SPEC: "[1, 2]"}, {SPEC: "3"}, {"format": "new"}])
def test_a_description_that_cannot_be_read(broken, metadata):
    refused(broken(**metadata))


class Sentinel:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_executed(net, tmp_path, suffix, zipped):
    harmed = tmp_path / "harmed"
    path = tmp_path / f"evil{suffix}"
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    content = {SPEC: net.spec(), "state_dict": state, "extra": Sentinel(harmed)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    complaint = refused(path)
    assert not harmed.exists()
    if suffix != ".safetensors":
        assert complaint == "holds more than tensors and plain values, so it was not loaded"


def test_the_sentinel_would_have_told(tmp_path):
    pickle.loads(pickle.dumps(Sentinel(tmp_path / "harmed"))).close()
    assert (tmp_path / "harmed").exists()


# --- names ---


@pytest.fixture
def shipped(net, tmp_path, monkeypatch):
    """A repository that comes with the networks `one` and `two`."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    for name in ("two", "one"):
        weights.save(net, tmp_path / "weights" / f"{name}.safetensors")
    return tmp_path / "weights"


def test_a_network_that_comes_with_the_repository_is_found_by_name(shipped):
    assert weights.names() == ["one", "two"]
    assert weights.find("one") == shipped / "one.safetensors"


@pytest.mark.parametrize("path", ["one.safetensors", "runs/one", "/a/b.ckpt"])
def test_anything_else_is_a_path(shipped, path):
    assert str(weights.find(path)) == path


def test_a_file_of_that_name_goes_first(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").write_bytes(b"")
    assert str(weights.find("one")) == "one"


def test_a_name_that_there_is_not(shipped):
    with pytest.raises(InputError, match=r"^no network named 'three' \(there are: one, two\); give weights=FILE"):
        weights.find("three")
