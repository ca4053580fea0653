import os

import pytest
import torch
from scipy.io import savemat

from vdsr import weights
from vdsr.net import VDSR


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def convert(command, tmp_path):
    def run(*overrides):
        return command(tmp_path, "src/convert.py", *overrides)

    return run


def test_a_state_dict_is_converted_and_scored(convert, command, sets, tmp_path):
    torch.manual_seed(0)
    net = VDSR(3, 4)
    torch.save({"state_dict": {f"module.{n}": t for n, t in net.state_dict().items()}}, tmp_path / "foreign.pth")
    done = convert("source=foreign.pth", "out=made/vdsr.safetensors")
    assert (done.status, done.err) == (0, "")
    assert "D = 3, 4 filters → made/vdsr.safetensors" in done.out
    again = weights.load(tmp_path / "made" / "vdsr.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    asked = [f"sets=[{sets.val}]", "scales=[3]", "accelerator=cpu"]
    scored = command(tmp_path, "src/evaluate.py", "weights=made/vdsr.safetensors", *asked)
    assert scored.status == 0, scored.err
    assert "val" in scored.out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "source has no value: give source=…"),
        (["source=none.pth", "out=o.safetensors"], "none.pth: no such weights file"),
        (["source=evil.pth", "out=o.safetensors"], "evil.pth: holds more than tensors and plain values"),
        (["source=other.mat", "out=o.safetensors"], "other.mat: has no cells 'weight' and 'bias'"),
        (["source=good.pth", "out=o.pth"], "out=o.pth: give a .safetensors file"),
        (["source=good.pth", "out=o.safetensors", "peak=high"], "peak=high"),
        (["source=good.pth", "out=o.safetensors", "residual=maybe"], "residual=maybe"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(convert, tmp_path, overrides, words):
    torch.save(Malicious(tmp_path / "executed"), tmp_path / "evil.pth")
    torch.save(VDSR(3, 4).state_dict(), tmp_path / "good.pth")
    savemat(tmp_path / "other.mat", {"x": torch.zeros(3).numpy()})
    done = convert(*overrides)
    assert done.status == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth", "good.pth", "other.mat"]
