import pickle

import pytest
import torch

from vdsr import checkpoints, weights
from vdsr.checkpoints import SPEC
from vdsr.errors import InputError
from vdsr.net import VDSR


@pytest.fixture
def checkpoint(tmp_path):
    net = VDSR(3, 4)
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({SPEC: net.spec(), "state_dict": state, "global_step": 12, "rates": [0.1, None]}, path)
    return path


def refused(path, read=checkpoints.read):
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_tensors_and_plain_values_are_read(checkpoint):
    found = checkpoints.read(checkpoint)
    assert found[SPEC] == {"name": "VDSR", "depth": 3, "width": 4, "residual": True}
    assert (found["global_step"], found["rates"]) == (12, [0.1, None])
    assert found["state_dict"]["net.body.0.weight"].shape == (4, 1, 3, 3)


def test_a_missing_file(tmp_path):
    assert "damaged or no checkpoint" in refused(tmp_path / "none.ckpt")


@pytest.mark.parametrize("left", [0, 1, 30, 0.5, 0.98])
def test_a_truncated_checkpoint(checkpoint, left):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(left * len(data)) if left < 1 else left])
    refused(checkpoint)


@pytest.mark.parametrize(
    "content", [b"just text\n", b"\x89PNG\r\n\x1a\n", pickle.dumps([1, 2]), b"PK\x03\x04", b"\x80\x02.", b"\0" * 1000]
)
def test_a_file_of_another_type(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    refused(tmp_path / "x.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {SPEC: {}}, [1], 7, torch.zeros(3)])
def test_somebody_else_s_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    assert refused(tmp_path / "x.ckpt").startswith("not a checkpoint of this project; give weights.safetensors")


@pytest.mark.parametrize(
    "changes", [{"state_dict": [1]}, {"state_dict": {1: torch.zeros(1)}}, {SPEC: [1]}, {SPEC: None}]
)
def test_a_checkpoint_of_the_wrong_shape(checkpoint, changes):
    content = checkpoints.read(checkpoint)
    torch.save({**content, **changes}, checkpoint)
    refused(checkpoint, weights.load)


def test_another_depth(checkpoint):
    content = checkpoints.read(checkpoint)
    content[SPEC]["depth"] = 4
    torch.save(content, checkpoint)
    assert refused(checkpoint, weights.load).startswith("does not fit the VDSR it names: ")
