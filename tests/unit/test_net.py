import math

import pytest
import torch
from torch import nn

from vdsr.errors import InputError
from vdsr.net import SRCNN, VDSR, Bicubic, build, channels_last


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def weights(net):
    return sum(conv.weight.numel() for conv in convolutions(net))


def reach(net, size=61):
    """Side of the square of input pixels on which the middle output pixel depends."""
    x = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    for conv in convolutions(net):
        nn.init.constant_(conv.weight, 0.1)  # all paths open
    net.double()(x)[0, 0, size // 2, size // 2].backward()
    touched = x.grad[0, 0].nonzero()
    (top, left), (bottom, right) = touched.amin(0).tolist(), touched.amax(0).tolist()
    assert (top, left) == (size - 1 - bottom, size - 1 - right)
    return bottom - top + 1


def test_the_paper_s_network_counts_664704_weights():
    net = VDSR()
    assert weights(net) == 664_704
    assert sum(p.numel() for p in net.parameters()) == 664_704 + 19 * 64 + 1 == 665_921
    assert [tuple(conv.weight.shape) for conv in convolutions(net)] == [
        (64, 1, 3, 3),
        *[(64, 64, 3, 3)] * 18,
        (1, 64, 3, 3),
    ]


def test_srcnn_counts_57184_weights():
    net = SRCNN()
    assert weights(net) == 81 * 64 + 25 * 64 * 32 + 25 * 32 == 57_184
    assert [conv.kernel_size[0] for conv in convolutions(net)] == [9, 5, 5]


@pytest.mark.parametrize("depth", [2, 5, 20])
def test_receptive_field_is_2d_plus_1(depth):
    assert reach(VDSR(depth, width=2, residual=False)) == 2 * depth + 1


def test_receptive_field_of_srcnn():
    assert reach(SRCNN()) == 17


@pytest.mark.parametrize("net", [VDSR(4, 8), VDSR(4, 8, residual=False), SRCNN(), Bicubic()])
@pytest.mark.parametrize("size", [(1, 1), (7, 12), (41, 41)])
def test_size_and_type_are_kept(net, size):
    ilr = torch.rand(2, 1, *size)
    out = net(ilr)
    assert out.shape == ilr.shape
    assert out.dtype == torch.float32


def test_residual_adds_the_input():
    torch.manual_seed(0)
    net, plain = VDSR(3, 4), VDSR(3, 4, residual=False)
    plain.load_state_dict(net.state_dict())
    ilr = torch.rand(1, 1, 9, 9)
    assert torch.equal(net(ilr), ilr + plain(ilr))
    assert plain(ilr).abs().max() > 0.01


def test_no_activation_after_the_last_layer():
    torch.manual_seed(0)
    out = VDSR(2, 16, residual=False)(torch.rand(1, 1, 30, 30))
    assert out.min() < 0 < out.max() or VDSR(2, 16, residual=False)(-torch.rand(1, 1, 30, 30)).min() < 0
    assert isinstance(VDSR(2).body[-1], nn.Conv2d)


def test_the_sum_is_taken_in_float32_under_autocast():
    net = VDSR(3, 4)
    nn.init.zeros_(convolutions(net)[-1].weight)
    ilr = torch.rand(1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(ilr), ilr)


def test_bicubic_is_its_input():
    ilr = torch.rand(1, 1, 5, 6)
    assert torch.equal(Bicubic()(ilr), ilr)


@pytest.mark.parametrize("net", [VDSR(6), SRCNN()])
def test_every_layer_begins_as_he_et_al_have_it(net):
    torch.manual_seed(0)
    net = build(net.spec())
    for conv in convolutions(net):
        weight = conv.weight.detach()
        std = math.sqrt(2 / weight[0].numel())
        allowed = 5 / math.sqrt(2 * weight.numel())  # five standard deviations of a sample's own
        assert weight.std().item() == pytest.approx(std, rel=allowed)
        assert weight.mean().abs().item() < 5 * std / math.sqrt(weight.numel())
        assert not conv.bias.any()


@pytest.mark.parametrize("depth", [1, 0, -3])
def test_fewer_than_two_layers_are_refused(depth):
    with pytest.raises(InputError, match=f"depth {depth}: a network has at least 2 layers"):
        VDSR(depth)


@pytest.mark.parametrize("width", [0, -1])
def test_no_filters_are_refused(width):
    with pytest.raises(InputError, match=f"width {width}: give at least 1 filter"):
        VDSR(5, width)


@pytest.mark.parametrize("net", [VDSR(5, 7, residual=False), VDSR(2, 1), SRCNN(), Bicubic()])
def test_a_spec_rebuilds_its_network(net):
    again = build(net.spec())
    assert type(again) is type(net)
    assert again.spec() == net.spec()
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"name": "EDSR"}, "no network named 'EDSR'; there are VDSR, SRCNN, Bicubic"),
        ({"name": "build"}, "no network named 'build'"),
        ({}, "no network named 'None'"),
        ({"name": "VDSR", "dept": 3}, "VDSR cannot be built from {'dept': 3}"),
        ({"name": "VDSR", "depth": "x"}, "depth x: a network has at least 2 layers"),
        ({"name": "VDSR", "depth": 1}, "depth 1: a network has at least 2 layers"),
    ],
)
def test_an_unknown_spec_is_refused(spec, complaint):
    with pytest.raises(InputError) as caught:
        build(spec)
    assert str(caught.value).startswith(complaint)


def test_channels_last_changes_the_layout_only():
    torch.manual_seed(0)
    net = VDSR(4, 8)
    ilr = torch.rand(1, 1, 20, 20)
    before = net(ilr)
    assert channels_last(net) is net
    assert convolutions(net)[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(net(ilr), before, atol=1e-5)
