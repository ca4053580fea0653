import logging

import pytest
import torch

from vdsr.checkpoint_io import LAST, PREVIOUS, Whole, newest
from vdsr.checkpoints import SPEC
from vdsr.errors import InputError
from vdsr.net import VDSR


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3, of which two are kept."""
    net = VDSR(3, 4)
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for step in (1, 2, 3):
        Whole().save_checkpoint({SPEC: net.spec(), "state_dict": state, "global_step": step}, tmp_path / LAST)
    return tmp_path


def found(folder, mend=True):
    path, checkpoint = newest(folder, mend)
    return path.name, checkpoint["global_step"]


def test_the_last_two_are_kept(folder):
    assert sorted(path.name for path in folder.iterdir()) == [LAST, PREVIOUS]
    assert found(folder) == (LAST, 3)
    (folder / LAST).unlink()  # killed between the two renamings
    assert found(folder) == (PREVIOUS, 2)


def test_another_checkpoint_is_kept_once(tmp_path):
    for value in (1, 2):
        Whole().save_checkpoint({"value": value}, tmp_path / "best.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert torch.load(tmp_path / "best.ckpt", weights_only=True) == {"value": 2}


def test_none(tmp_path):
    assert newest(tmp_path, mend=True) is None


def cut(data):
    return data[: len(data) // 2]


def flip_a_weight(data):
    """One bit of a tensor's bytes, which torch.load itself does not notice."""
    middle = len(data) // 4
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("harm", [cut, flip_a_weight, lambda data: b"", lambda data: bytes(len(data))])
def test_a_damaged_one_is_set_aside(folder, caplog, harm):
    whole = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(harm(whole))
    assert found(folder, mend=False) == (PREVIOUS, 2)
    assert (folder / LAST).exists()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert found(folder) == (PREVIOUS, 2)
    (line,) = caplog.messages
    assert line.startswith(f"{folder / LAST} is damaged (")
    assert line.endswith("set aside as last.ckpt.damaged")
    assert (folder / "last.ckpt.damaged").read_bytes() == harm(whole)
    assert not (folder / LAST).exists()


def test_two_damaged_ones(folder, caplog):
    for name in (LAST, PREVIOUS):
        (folder / name).write_bytes(b"PK")
    assert newest(folder, mend=True) is None
    assert len(caplog.messages) == 2


def test_somebody_else_s_is_refused_and_stays(folder):
    torch.save({"state_dict": {}}, folder / LAST)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        newest(folder, mend=True)
    assert (folder / LAST).exists()
