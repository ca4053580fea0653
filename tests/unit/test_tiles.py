import pytest
import torch

from vdsr.net import SRCNN, VDSR, Bicubic
from vdsr.tiles import upscale


@pytest.mark.parametrize("size", [(40, 40), (64, 40), (65, 130), (39, 101)])
@pytest.mark.parametrize("net", [VDSR(5, 8), VDSR(7, 4, residual=False), SRCNN()])
def test_tiles_change_nothing(net, size):
    torch.manual_seed(0)
    ilr = torch.rand(1, 1, *size, dtype=torch.float64)
    net = net.double().eval()
    with torch.inference_mode():
        whole = net(ilr)
    assert (upscale(net, ilr, tile=32) - whole).abs().max() < 1e-12


def test_the_overlap_is_no_larger_than_it_must_be():
    """One pixel less of it, and the tiles would show."""
    torch.manual_seed(0)
    net = VDSR(5, 8).double().eval()
    ilr = torch.rand(1, 1, 128, 128, dtype=torch.float64)
    with torch.inference_mode():
        whole = net(ilr)
    net.radius -= 1
    assert (upscale(net, ilr, tile=32) - whole).abs().max() > 1e-9


def test_tiles_are_alike_and_no_larger_than_asked_for():
    seen = []
    net = VDSR(4, 4)
    net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    upscale(net, torch.rand(1, 1, 100, 70), tile=32)
    assert len(seen) == 4 * 3
    assert set(seen) == {(25 + 2 * 4, 24 + 2 * 4)}  # 100 = 4 · 25, 70 < 3 · 24


def test_bicubic_hands_back_its_input():
    ilr = torch.rand(1, 1, 600, 600)
    assert upscale(Bicubic(), ilr) is ilr
