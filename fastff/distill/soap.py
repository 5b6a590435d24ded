"""SOAP, the optimiser that trains students: Adam in the slowly turning eigenbasis of Shampoo's preconditioner.

Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade 2024, "SOAP: improving and stabilizing Shampoo using
Adam", arXiv:2409.11321, algorithm 3. A student has few parameters, and its inputs (invariants of the same moments) are
strongly correlated: gradients are turned into a basis where they are not, by matrix products of 64 to 288 rows.

Here: the update, its replay on a GPU, its state. Not here: learning rates, schedules, what is trained
(:mod:`fastff.distill.module`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastff.kernels.replay import Replay, hold_weakly

RAMP = 1e-5
"""Largest entry of the ramp that decides a first basis, over the sum of the eigenvalues."""
TINY = 1e-19
"""Keeps a matrix without any gradient, or whose squares underflow, from dividing by zero."""
DIAGONAL_SHARE = 1e-5
"""Part of the mean eigenvalue added before a basis is turned, so that directions without gradients keep theirs."""

UNCLIPPED = 20
"""Steps in the beginning that clip nothing: what is typical is not known yet."""

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
    clip : float
        Largest norm of a matrix's gradient, relative to the root of the averaged squares of those before; larger ones
        are scaled down. The averages forget within twenty steps: one batch of atoms pushed together would otherwise
        decide where all parameters go for as long.
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
        clip: float = 2.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "basis_decay": basis_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "refresh_every": refresh_every,
            "clip": clip,
        }
        super().__init__(params, defaults)
        if len(self.param_groups) > 1:
            raise ValueError(f"SOAP takes one group of parameters, not {len(self.param_groups)}")
        self._stacks = _stack_parameters(self.param_groups[0]["params"])
        self._update: _Update | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, or what :meth:`load_state_dict` read."""
        super().__setstate__(state)
        self.param_groups[0].setdefault("clip", self.defaults["clip"])  # not in earlier states
        self._stacks = _stack_parameters(self.param_groups[0]["params"])
        self._update = None  # its tensors are others

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters; one without a gradient counts as having one of zeros. No GPU is waited for."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group, stacks = self.param_groups[0], self._stacks
        if not stacks:
            return loss
        for stack in stacks:
            if "step" not in self.state[stack[0]]:
                self.state[stack[0]] = _start(_join(_pick_gradients(stack)))
        states = [self.state[stack[0]] for stack in stacks]
        for state in states:
            state["step"] += 1.0
        n_steps = int(states[0]["step"])
        beta1, beta2 = group["betas"]
        keep = 1.0 - group["lr"] * group["weight_decay"]
        rate = group["lr"] * (1.0 - beta2**n_steps) ** 0.5 / (1.0 - beta1**n_steps)
        if self._update is None or not self._update.fits():
            self._update = _Update(group, stacks, states)
        known = 1.0 - beta2 ** (n_steps - 1)  # of the averaged squares, before this step
        room = group["clip"] ** 2 / known if n_steps > UNCLIPPED else math.inf
        self._update(keep, rate, room)
        if n_steps % group["refresh_every"] == 0:
            for state in states:
                _refresh_basis(state)
        return loss


class _Update:
    """The update of all stacks, over fixed copies of the gradients and three scalars, so that a GPU can replay it."""

    def __init__(
        self, group: dict[str, Any], stacks: list[list[nn.Parameter]], states: list[State]
    ) -> None:
        self._group, self._stacks, self._states = group, stacks, states
        first = stacks[0][0]
        self._places = self._locate()
        self._gradients = [[torch.empty_like(p) for p in stack] for stack in stacks]
        self._keep, self._rate, self._room = (first.new_zeros(()) for _ in range(3))
        self.replay = Replay(hold_weakly(self._apply), first.device)

    def _locate(self) -> list[int]:
        return [p.data_ptr() for stack in self._stacks for p in stack]

    def fits(self) -> bool:
        """Whether the parameters are still where a recording updates them."""
        return self._locate() == self._places

    def __call__(self, keep: float, rate: float, room: float) -> None:
        """Move the parameters by their present gradients."""
        for stack, gradients in zip(self._stacks, self._gradients, strict=True):
            torch._foreach_copy_(gradients, _pick_gradients(stack))
        self._keep.fill_(keep)
        self._rate.fill_(rate)
        self._room.fill_(room)
        self.replay()

    def _apply(self) -> None:
        joined = [_join(gradients) for gradients in self._gradients]
        scalars = self._keep, self._rate, self._room
        _apply_update(self._group, self._stacks, self._states, joined, *scalars)


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
    keep: Tensor,
    rate: Tensor,
    room: Tensor,
) -> None:
    """Move the parameters: what is recorded on a GPU. ``keep`` and ``rate`` hold the schedule and its corrections.

    ``room`` is how large the mean square of a gradient may be, relative to the averaged ones before any correction.
    """
    beta1, beta2 = group["betas"]
    for stack, state, given in zip(stacks, states, gradients, strict=True):
        mean, square = state["mean"], state["square"]
        gradient = _clip(given, square, room)
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


def _clip(gradients: Tensor, square: Tensor, room: Tensor) -> Tensor:
    """Gradients (n_matrices, rows, columns) of a mean square of at most ``room`` times the average, if there is one."""
    typical = square.mean(dim=(1, 2), keepdim=True)
    size = gradients.square().mean(dim=(1, 2), keepdim=True)
    share = (typical * room / size).clamp_max(1.0).sqrt().nan_to_num(nan=1.0)
    return gradients * torch.where(typical > 0.0, share, 1.0)


def _refresh_basis(state: State) -> None:
    """Turn both bases towards the eigenvectors of the averages, by one orthogonal iteration in order of eigenvalue.

    The averaged squares follow the order; in place, since a recorded update reads these tensors.
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
