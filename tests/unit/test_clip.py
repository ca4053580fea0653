import pytest
import torch
from torch import nn

from vdsr.clip import Adjustable, Norm, Unclipped, gradient_figures
from vdsr.errors import InputError


def parameters(*gradients):
    made = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(len(gradient)))
        parameter.grad = torch.tensor(gradient)
        made.append(parameter)
    return made


def gradients(made):
    return [parameter.grad.tolist() for parameter in made]


@pytest.mark.parametrize(("gamma", "bound"), [(0.1, 0.01), (0.01, 0.1), (0.001, 1.0)])
def test_the_bound_is_theta_over_gamma(gamma, bound):
    clip = Adjustable(theta=0.001)
    assert clip.bound(gamma) == pytest.approx(bound, rel=1e-12)
    made = parameters([-5.0, 0.5 * bound], [3.0])
    clip(made, gamma)
    assert gradients(made) == [pytest.approx([-bound, 0.5 * bound]), pytest.approx([bound])]


def test_the_largest_plain_step_is_theta_whatever_gamma_is():
    for gamma in (0.1, 0.01, 0.001):
        (weight,) = parameters([40.0, -40.0])
        Adjustable(theta=0.02)([weight], gamma)
        torch.optim.SGD([weight], lr=gamma).step()
        assert weight.tolist() == pytest.approx([-0.02, 0.02])


def test_what_was_clipped_no_longer_is_once_gamma_fell_tenfold():
    clip = Adjustable(theta=0.001)
    before, after = parameters([0.05]), parameters([0.05])
    clip(before, 0.1)
    clip(after, 0.01)
    assert gradients(before) == [pytest.approx([0.01])]
    assert gradients(after) == [pytest.approx([0.05])]


def test_a_learning_rate_of_zero_does_not_divide():
    assert Adjustable(0.1).bound(0) == float("inf")


def test_norm_scales_all_gradients_together():
    made = parameters([3.0], [0.0, 4.0])
    Norm(0.5)(made, gamma=0.1)
    assert gradients(made) == [pytest.approx([0.3], rel=1e-5), pytest.approx([0.0, 0.4], rel=1e-5)]
    assert Norm(0.5).bound(0.1) == Norm(0.5).bound(0.001) == 0.5


def test_norm_leaves_small_gradients():
    made = parameters([0.3], [0.0, 0.4])
    Norm(0.6)(made, gamma=0.1)
    assert gradients(made) == [pytest.approx([0.3]), pytest.approx([0.0, 0.4])]


def test_unclipped_changes_nothing():
    made = parameters([1e6, -3.0])
    Unclipped()(made, gamma=0.1)
    assert gradients(made) == [[1e6, -3.0]]
    assert Unclipped().bound(0.1) == float("inf")


@pytest.mark.parametrize("theta", [0, -1.0, float("nan")])
def test_theta_must_be_positive(theta):
    with pytest.raises(InputError, match=r"must be above 0 \(clip.theta="):
        Adjustable(theta)


@pytest.mark.parametrize("norm", [0, -0.4, float("nan")])
def test_a_norm_must_be_positive(norm):
    with pytest.raises(InputError, match=r"must be above 0 \(clip.max_norm="):
        Norm(norm)


def test_figures_are_norm_and_share_beyond_the_bound():
    made = [*parameters([3.0, -0.1], [0.0, -4.0]), nn.Parameter(torch.zeros(3))]
    figures = gradient_figures(made, bound=3.5)
    assert float(figures.norm) == pytest.approx((9 + 0.01 + 16) ** 0.5)
    assert float(figures.share_clipped) == pytest.approx(1 / 4)
    assert float(gradient_figures(made, bound=0.05).share_clipped) == pytest.approx(3 / 4)
    assert float(gradient_figures(made, bound=4.0).share_clipped) == 0
