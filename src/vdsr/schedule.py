"""The learning rate γ over a training."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR


def drops(optimizer: Optimizer, steps: int, number: int, factor: float) -> LRScheduler:
    """γ multiplied by `factor` at `number` equally spaced moments of a training of `steps` steps.

    Three drops by 0.1 are the paper's: one after every 20 of 80 epochs.
    """
    return MultiStepLR(optimizer, [max(1, steps * (i + 1) // (number + 1)) for i in range(number)], factor)
