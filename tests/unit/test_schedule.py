import pytest
import torch

from vdsr.schedule import drops


def rates(steps, number, factor, lr=0.1):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = drops(optimiser, steps, number, factor)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_three_drops_are_one_after_each_quarter():
    expected = [0.1] * 20 + [0.01] * 20 + [0.001] * 20 + [0.0001] * 20
    assert rates(80, 3, 0.1) == pytest.approx(expected, rel=1e-9)


def test_drops_of_an_uneven_number_of_steps():
    assert rates(10, 2, 0.5, lr=1.0) == [1.0] * 3 + [0.5] * 3 + [0.25] * 4


def test_no_drops():
    assert rates(5, 0, 0.1) == [0.1] * 5
