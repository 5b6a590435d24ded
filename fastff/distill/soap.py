"""SOAP, the optimiser that trains students: Adam in the slowly turning eigenbasis of Shampoo's preconditioner.

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade 2024, "SOAP: improving and stabilizing Shampoo using
Adam", arXiv:2409.11321, algorithm 3. A student has few parameters, and its inputs (invariants of the same moments) are
strongly correlated: turning gradients into a basis where they are not makes each step worth many of AdamW's, for
matrix products of 64 to 288 rows that cost little beside the loss.

Here: the update, its capture on a GPU, its state. Not here: learning rates, schedules, what is trained
(:mod:`fastff.distill.module`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastff.kernels.replay import record_graph

EAGER_STEPS = 3
"""Steps before the update is captured on a GPU: they set up what the capture needs."""
RAMP = 1e-5
"""Largest entry of the ramp that decides a first basis, over the sum of the eigenvalues."""
TINY = 1e-19
"""Keeps a matrix without any gradient, or whose squares underflow, from dividing by zero."""
DIAGONAL_SHARE = 1e-5
"""Part of the mean eigenvalue added before a basis is turned, so that directions without gradients keep theirs."""

State = dict[str, Tensor]


class Soap(torch.optim.Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner.

    Parameters of more than two dimensions are stacks of matrices, those over their last two; vectors are updated as
    by Adam. Matrices of one shape are updated together, whichever parameter they belong to; what is kept of them is
    in the state of the first of these parameters.

    Parameters
    ----------
    params : iterable of Parameter or of dict
        As for any optimiser of torch.
    lr : float
    betas : (float, float)
        Decay of the averages of the gradient and of its square in the eigenbasis.
    basis_decay : float
        Decay of the averages of ``G G^T`` and ``G^T G``, whose eigenvectors are the basis.
    eps : float
        Added to the root of the averaged squares, relative to their root mean over the matrix: directions whose
        gradient is rounding alone stay almost where they are.
    weight_decay : float
        Decoupled, relative to the learning rate.
    refresh_every : int
        Steps between two turns of the basis.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-3,
        *,
        betas: tuple[float, float] = (0.95, 0.95),
        basis_decay: float = 0.95,
        eps: float = 1e-3,
        weight_decay: float = 1e-4,
        refresh_every: int = 10,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "basis_decay": basis_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "refresh_every": refresh_every,
        }
        super().__init__(params, defaults)
        if len(self.param_groups) > 1:
            raise ValueError(f"SOAP takes one group of parameters, not {len(self.param_groups)}")
        self._stacks = _stack_parameters(self.param_groups[0]["params"])
        self._forget()

    def _forget(self) -> None:
        """Drop what was captured: the tensors are others."""
        self._captured: _CapturedUpdate | None = None
        self._n_eager = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, or what :meth:`load_state_dict` read."""
        super().__setstate__(state)
        self._stacks = _stack_parameters(self.param_groups[0]["params"])
        self._forget()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters; one without a gradient counts as having one of zeros. No GPU is waited for."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group, stacks = self.param_groups[0], self._stacks
        for stack in stacks:
            if "step" not in self.state[stack[0]]:
                self.state[stack[0]] = _start(_join(_pick_gradients(stack)))
        if not stacks:
            return loss
        states = [self.state[stack[0]] for stack in stacks]
        for state in states:
            state["step"] += 1.0
        n_steps = int(states[0]["step"])
        beta1, beta2 = group["betas"]
        keep = 1.0 - group["lr"] * group["weight_decay"]
        rate = group["lr"] * (1.0 - beta2**n_steps) ** 0.5 / (1.0 - beta1**n_steps)
        if self._captured is not None and not self._captured.fits(stacks):
            self._forget()
        if not stacks[0][0].is_cuda or self._n_eager < EAGER_STEPS:
            gradients = [_join(_pick_gradients(stack)) for stack in stacks]
            _apply_update(group, stacks, states, gradients, keep, rate)
            self._n_eager += 1
        else:
            if self._captured is None:
                self._captured = _CapturedUpdate(group, stacks, states)
            self._captured.replay(stacks, keep, rate)
        if n_steps % group["refresh_every"] == 0:
            for state in states:
                _refresh_basis(state)
        return loss


class _CapturedUpdate:
    """The update of all stacks as one CUDA graph, given copies of the gradients and two scalars."""

    def __init__(
        self, group: dict[str, Any], stacks: list[list[nn.Parameter]], states: list[State]
    ) -> None:
        parameters = [p for stack in stacks for p in stack]
        self._places = [p.data_ptr() for p in parameters]
        self._gradients = [torch.empty_like(p) for p in parameters]
        self._keep, self._rate = parameters[0].new_zeros(()), parameters[0].new_zeros(())
        parts = iter(self._gradients)
        copies = [[next(parts) for _ in stack] for stack in stacks]
        with record_graph(self._gradients[0].device) as self._graph:
            joined = [_join(own) for own in copies]
            _apply_update(group, stacks, states, joined, self._keep, self._rate)

    def fits(self, stacks: list[list[nn.Parameter]]) -> bool:
        """Whether the parameters are still where the graph updates them."""
        return [p.data_ptr() for stack in stacks for p in stack] == self._places

    def replay(self, stacks: list[list[nn.Parameter]], keep: float, rate: float) -> None:
        torch._foreach_copy_(self._gradients, [g for s in stacks for g in _pick_gradients(s)])
        self._keep.fill_(keep)
        self._rate.fill_(rate)
        self._graph.replay()


def _stack_parameters(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters by the shape of their matrices, in order; empty ones are left out."""
    stacks: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.numel() == 0:
            continue
        stacks.setdefault(_matrix_shape(parameter), []).append(parameter)
    return list(stacks.values())


def _pick_gradients(stack: list[nn.Parameter]) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in stack]


def _matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of the matrices of a tensor; a vector has one row."""
    return (1, tensor.numel()) if tensor.ndim < 2 else (tensor.shape[-2], tensor.shape[-1])


def _join(tensors: list[Tensor]) -> Tensor:
    """All matrices of the tensors, (n_matrices, rows, columns)."""
    return torch.cat([tensor.reshape(-1, *_matrix_shape(tensor)) for tensor in tensors])


def _start(gradients: Tensor) -> State:
    """State of a stack (n_matrices, rows, columns) before its first step; bases are those of its first gradient."""
    state = {
        "step": torch.zeros(()),
        "mean": torch.zeros_like(gradients),
        "square": torch.zeros_like(gradients),
    }
    if min(gradients.shape[1:]) > 1:
        finite = torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0)
        size = finite.abs().amax(dim=(1, 2), keepdim=True).clamp_min(TINY)
        exact = finite.double() / size
        for side, product in (("left", exact @ exact.mT), ("right", exact.mT @ exact)):
            state[side] = (product * size.double().square()).to(gradients.dtype)
            state[f"{side}_basis"] = _find_basis(product).to(gradients.dtype)
    return state


def _find_basis(product: Tensor) -> Tensor:
    """Eigenvectors (n_matrices, n, n), largest eigenvalue first, of ``product`` with a small ramp on its diagonal.

    A first gradient has few directions; the ramp decides the others, which rounding would decide otherwise. In double
    precision, since its steps are small.
    """
    n = product.shape[-1]
    ramp = torch.linspace(RAMP, 0.5 * RAMP, n, dtype=product.dtype, device=product.device)
    size = product.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None]
    return torch.linalg.eigh(product + torch.diag_embed(ramp * size))[1].flip(-1).contiguous()


def _apply_update(
    group: dict[str, Any],
    stacks: list[list[nn.Parameter]],
    states: list[State],
    gradients: list[Tensor],
    keep: Tensor | float,
    rate: Tensor | float,
) -> None:
    """Move the parameters: what is captured on a GPU. ``keep`` and ``rate`` hold the schedule and its corrections."""
    beta1, beta2 = group["betas"]
    for stack, state, gradient in zip(stacks, states, gradients, strict=True):
        mean, square = state["mean"], state["square"]
        mean.lerp_(gradient, 1.0 - beta1)
        turned, direction = gradient, mean
        if "left" in state:
            left, right = state["left_basis"], state["right_basis"]
            turned, direction = left.mT @ gradient @ right, left.mT @ mean @ right
        square.lerp_(turned.square(), 1.0 - beta2)
        floor = group["eps"] * square.mean(dim=(1, 2), keepdim=True).sqrt()
        move = direction / (square.sqrt() + floor + TINY)
        if "left" in state:
            move = left @ move @ right.mT
            change = 1.0 - group["basis_decay"]
            state["left"].lerp_(gradient @ gradient.mT, change)
            state["right"].lerp_(gradient.mT @ gradient, change)
        moves = move * rate
        place = 0
        for parameter in stack:
            count = parameter.numel() // moves[0].numel()
            own = moves[place : place + count].view(parameter.shape)
            parameter.copy_(parameter * keep - own)
            place += count


def _refresh_basis(state: State) -> None:
    """Turn both bases towards the eigenvectors of the averages, by one orthogonal iteration in order of eigenvalue.

    The averaged squares follow the order; in place, since a captured update reads these tensors.
    """
    for side, dim in (("left", 1), ("right", 2)):
        if side not in state:
            continue
        average, basis = state[side], state[f"{side}_basis"]
        image = average @ basis
        order = (image * basis).sum(dim=1).argsort(dim=1, descending=True)
        share = DIAGONAL_SHARE * average.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
        columns = order[:, None, :].expand_as(basis)
        ranked = (image + share * basis).gather(2, columns)
        basis.copy_(torch.linalg.qr(ranked)[0])
        square = state["square"]
        places = order[:, :, None] if dim == 1 else order[:, None, :]
        square.copy_(square.gather(dim, places.expand_as(square)))
