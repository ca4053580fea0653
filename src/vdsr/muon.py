"""Muon: momentum whose steps are orthogonal matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Newton–Schulz: a, b, c of five rounds that bring singular values near 1 (Cesista, Jiacheng & Jordan 2025)
ROUNDS = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037)]
ROUNDS += [(2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)]


class Muon(Optimizer):
    """For a network's hidden filters; what maps from or to one channel, and biases, are stepped by Adam.

    torch.optim.Muon takes matrices only, and orthogonalises one at a time; here all filters of a shape go together.
    A layer's (O, I, 3, 3) filters are one matrix, O × 9I; its step is γ times what `orthogonal` makes of it.
    lr: γ. momentum: Nesterov's. adam: Adam's learning rate, in units of γ.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.005, momentum: float = 0.95, adam: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "adam": adam})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            others = []
            for p in (p for p in group["params"] if p.grad is not None):
                if p.ndim == 4 and min(p.shape[:2]) > 1:
                    shapes.setdefault(p.shape, []).append(p)
                else:
                    others.append(p)
            for filters in shapes.values():
                self._orthogonal(filters, group["lr"], group["momentum"])
            if others:
                self._adam(others, group["lr"] * group["adam"])
        return loss

    def _orthogonal(self, filters: list[Tensor], lr: float, momentum: float) -> None:
        grads = [p.grad for p in filters if p.grad is not None]
        for p in filters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        means = [self.state[p]["momentum"] for p in filters]
        torch._foreach_mul_(means, momentum)
        torch._foreach_add_(means, grads)
        steps = torch.stack(torch._foreach_add(grads, means, alpha=momentum))
        torch._foreach_add_(filters, list(orthogonal(steps.flatten(2)).view_as(steps)), alpha=-lr)

    def _adam(self, others: list[Tensor], lr: float, beta1: float = 0.9, beta2: float = 0.99) -> None:
        for p in others:
            state = self.state[p]
            if not state:
                state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
            assert p.grad is not None
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - beta1)
            state["square"].lerp_(p.grad.square(), 1 - beta2)
            mean = state["mean"] / (1 - beta1 ** state["step"])
            p.addcdiv_(mean, (state["square"] / (1 - beta2 ** state["step"])).sqrt() + 1e-10, value=-lr)


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, r, c) matrices, r ≤ c, with their singular values brought near 1, in bf16 on the way.

    Those above a five hundredth of a matrix's norm come to lie between 0.7 and 1.2; smaller ones grow 490-fold at most.
    """
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-12)).bfloat16()
    for a, b, c in ROUNDS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()
