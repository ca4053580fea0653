"""Gradient clipping: the paper's adjustable one, and what it is compared with.

A clip is called between the backward pass and the optimiser's step with the current learning rate γ,
changes the gradients in place and returns the bound it used (a norm's bound for `Norm`).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vdsr.errors import InputError


class Adjustable:
    """Clip every gradient element to ±θ/γ (Kim et al. 2016, section 3.2).

    The largest step of plain SGD is then θ whatever γ is: as γ falls tenfold the bound grows tenfold.
    theta: θ > 0, in units of a weight. Raises InputError when θ ≤ 0.
    """

    def __init__(self, theta: float) -> None:
        if not theta > 0:
            raise InputError(f"θ {theta}: must be above 0 (clip.theta=0.0001), or choose clip=none")
        self.theta = theta

    def bound(self, gamma: float) -> float:
        """θ/γ, for a learning rate γ > 0."""
        return self.theta / gamma if gamma > 0 else float("inf")

    def __call__(self, parameters: Iterable[Tensor], gamma: float) -> None:
        torch.nn.utils.clip_grad_value_(parameters, self.bound(gamma))


class Norm:
    """Scale all gradients down together to a fixed norm: what most VDSR code does instead (0.4).

    max_norm: the largest Euclidean norm, above 0.
    """

    def __init__(self, max_norm: float = 0.4) -> None:
        if not max_norm > 0:
            raise InputError(f"norm {max_norm}: must be above 0 (clip.max_norm=0.4), or choose clip=none")
        self.max_norm = max_norm

    def bound(self, gamma: float) -> float:
        """The norm; γ plays no part."""
        return self.max_norm

    def __call__(self, parameters: Iterable[Tensor], gamma: float) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)


class Unclipped:
    """No clipping."""

    def bound(self, gamma: float) -> float:
        """No bound: infinity."""
        return float("inf")

    def __call__(self, parameters: Iterable[Tensor], gamma: float) -> None:
        pass


Clip = Adjustable | Norm | Unclipped


class GradientFigures(NamedTuple):
    """Scalars on the device, not yet synchronised."""

    norm: Tensor  # Euclidean, before clipping
    share_clipped: Tensor  # of all elements, in [0, 1]


@torch.no_grad()
def gradient_figures(parameters: Iterable[Tensor], bound: float) -> GradientFigures:
    """Norm of the gradients as they stand, and the share of elements beyond ±bound."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack(torch._foreach_norm(grads)).norm()
    beyond = torch.stack([(g.abs() > bound).sum() for g in grads]).sum()
    return GradientFigures(norm, beyond / sum(g.numel() for g in grads))
