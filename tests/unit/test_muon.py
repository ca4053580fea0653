import copy

import pytest
import torch
from torch.nn import functional as F

from vdsr.muon import Muon, orthogonal
from vdsr.net import VDSR, channels_last


def test_singular_values_are_brought_near_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 16, 144) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert 0.7 < values.min() < values.max() < 1.3


def test_small_singular_values_are_raised_but_not_to_one():
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(64, 576), full_matrices=False)
    values = torch.logspace(0, -5, 64)
    found = torch.linalg.svdvals(orthogonal((left * values @ right)[None])[0])
    large = values > values.norm() / 500
    assert 0.7 < found[: large.sum()].min() < found.max() < 1.3
    assert found.min() < 0.3


def test_singular_vectors_are_kept():
    torch.manual_seed(0)
    matrix = torch.randn(1, 8, 72, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    exact = (left @ right).float()
    assert F.cosine_similarity(orthogonal(matrix.float()).flatten(), exact.flatten(), dim=0) > 0.98


def test_no_gradient_moves_no_filter():
    assert torch.equal(orthogonal(torch.zeros(1, 4, 36)), torch.zeros(1, 4, 36))


def gradients(net):
    torch.manual_seed(1)
    for p in net.parameters():
        p.grad = torch.randn_like(p)


def test_a_step_of_the_hidden_filters_is_orthogonal_and_as_long_as_the_rate():
    net = channels_last(VDSR(4, 8))
    before = [p.detach().clone() for p in net.parameters()]
    optimiser = Muon(net.parameters(), lr=0.01)
    gradients(net)
    optimiser.step()
    for p, old in zip(net.parameters(), before, strict=True):
        moved = (p.detach() - old) / 0.01
        if p.ndim == 4 and min(p.shape[:2]) > 1:
            assert torch.linalg.svdvals(moved.flatten(1)).sub(1).abs().max() < 0.3
        else:  # Adam's first step goes by the gradient's sign
            assert moved == pytest.approx(-0.1 * p.grad.sign(), rel=1e-2)


def test_outer_layers_go_as_by_torchs_adam():
    net = VDSR(3, 4)
    other = copy.deepcopy(net)
    ours = Muon(net.parameters(), lr=0.01, adam=0.5)
    adam = torch.optim.Adam(other.parameters(), lr=0.005, betas=(0.9, 0.99), eps=1e-10)
    for _ in range(5):
        for each, optimiser in ((net, ours), (other, adam)):
            gradients(each)
            optimiser.step()
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        hidden = name == "body.2.weight"
        assert torch.allclose(p, q, atol=1e-6) is not hidden


def test_its_state_comes_back_from_a_checkpoint(tmp_path):
    net = channels_last(VDSR(3, 4))
    optimiser = Muon(net.parameters(), lr=0.01)
    gradients(net)
    optimiser.step()
    torch.save([net.state_dict(), optimiser.state_dict()], tmp_path / "state.pt")
    again = channels_last(VDSR(3, 4))
    resumed = Muon(again.parameters(), lr=0.01)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    for each, stepped in ((net, optimiser), (again, resumed)):
        gradients(each)
        stepped.step()
    assert all(map(torch.equal, net.parameters(), again.parameters()))


def test_a_closure_may_compute_gradients():
    net = VDSR(3, 4)
    optimiser = Muon(net.parameters(), lr=0.01)

    def closure():
        optimiser.zero_grad()
        loss = net(torch.ones(1, 1, 5, 5)).square().sum()
        loss.backward()
        return loss

    first = optimiser.step(closure)
    assert optimiser.step(closure) < first
