"""The optimiser: what it minimises, its state, its basis. Its capture on a GPU runs only where there is one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fastff.distill.soap import Soap, _refresh_basis, _start
from fastff.kernels import replay

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ),
]


def build_problem(seed: int = 0) -> tuple[list[nn.Parameter], Tensor, Tensor]:
    """A two-layer fit to correlated inputs, parameters of one to three dimensions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    parameters = [nn.Parameter(draw(2, 6, 8) * 0.3), nn.Parameter(draw(8) * 0.1)]
    parameters += [nn.Parameter(draw(6, 8) * 0.3), nn.Parameter(draw(8, 3) * 0.3)]
    inputs = draw(64, 6) @ (draw(6, 6) * torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1, 0.03]))
    target = torch.tanh(inputs @ draw(6, 3) * 0.2)
    return parameters, inputs, target


def compute_loss(parameters: list[nn.Parameter], inputs: Tensor, target: Tensor) -> Tensor:
    stack, bias, mixing, readout = parameters
    hidden = torch.tanh(inputs @ stack[0] + bias) * (inputs @ (stack[1] + mixing))
    return (hidden @ readout - target).square().mean()


def train(optimizer: torch.optim.Optimizer, problem: tuple, n_steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = compute_loss(*problem)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_ends_far_below_adam_on_correlated_inputs() -> None:
    """What it is used for; the same learning rate and number of steps."""
    reached = {"soap": 0.0, "adam": 0.0}
    for seed in range(4):
        ours, theirs = build_problem(seed), build_problem(seed)
        reached["soap"] += train(Soap(ours[0], lr=1e-2), ours, 300)
        adam = torch.optim.AdamW(theirs[0], lr=1e-2, betas=(0.9, 0.99))
        reached["adam"] += train(adam, theirs, 300)
    assert reached["soap"] < 0.6 * reached["adam"]


def test_vectors_are_updated_as_by_adam() -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(7, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    steps = (
        Soap([ours], lr=0.1, betas=(0.9, 0.95), weight_decay=0.01, eps=1e-8),
        torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), weight_decay=0.01),
    )
    for _ in range(20):
        gradient = torch.randn(7, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in steps:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_stacked_matrices_move_as_they_would_alone() -> None:
    """Parameters of one shape share tensors of the state, not each other's bases."""
    generator = torch.Generator().manual_seed(2)
    together = nn.Parameter(torch.randn(3, 4, 5, generator=generator))
    alone = [nn.Parameter(matrix.clone()) for matrix in together.detach()]
    optimizers = [Soap([together]), *(Soap([matrix]) for matrix in alone)]
    for _ in range(25):
        together.grad = torch.randn(3, 4, 5, generator=generator)
        for matrix, gradient in zip(alone, together.grad, strict=True):
            matrix.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together.detach(), torch.stack(list(alone)).detach())


def test_the_basis_turns_to_the_eigenvectors_and_stays_orthonormal() -> None:
    generator = torch.Generator().manual_seed(3)
    state = _start(torch.randn(2, 5, 4, generator=generator))
    wanted = torch.linalg.qr(torch.randn(2, 5, 5, generator=generator))[0]
    values = torch.tensor([100.0, 30.0, 9.0, 2.0, 0.1])
    state["left"] = wanted @ torch.diag(values).expand(2, 5, 5) @ wanted.mT
    state["square"] = torch.arange(1.0, 6.0)[None, :, None].expand(2, 5, 4).clone()
    for _ in range(30):
        _refresh_basis(state)
    basis = state["left_basis"]
    torch.testing.assert_close(basis.mT @ basis, torch.eye(5).expand(2, 5, 5), atol=1e-5, rtol=0)
    overlap = (basis.mT @ wanted).abs()
    torch.testing.assert_close(overlap, torch.eye(5).expand(2, 5, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_restored_state_continues_with_the_same_numbers(device: str) -> None:
    made, inputs, target = build_problem()
    parameters = [nn.Parameter(p.detach().to(device)) for p in made]
    problem = parameters, inputs.to(device), target.to(device)
    optimizer = Soap(problem[0])
    train(optimizer, problem, 37)
    other = copy.deepcopy(problem)
    restored = Soap(other[0])
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, problem, 23)
    train(restored, other, 23)
    for ours, theirs in zip(problem[0], other[0], strict=True):
        assert torch.equal(ours, theirs)


def test_a_parameter_that_loses_its_gradient_gets_none_of_others() -> None:
    """They share tensors of the state."""
    first, second = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Soap([first, second], weight_decay=0.0)
    first.grad = torch.eye(3)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(second.detach(), torch.ones(3, 3))
    assert not torch.equal(first.detach(), torch.ones(3, 3))


def test_empty_parameters_and_copies() -> None:
    parameter = nn.Parameter(torch.ones(3, 3))
    optimizer = Soap([nn.Parameter(torch.ones(3, 0)), parameter])
    parameter.grad = torch.eye(3)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    (own,) = (p for p in copied.param_groups[0]["params"] if p.numel())
    own.grad = parameter.grad.clone()
    copied.step()
    optimizer.step()
    assert torch.equal(own, parameter)


@pytest.mark.parametrize("size", [1e-30, 1e-24, 1e-12, 1.0, 1e12])
def test_a_step_does_not_depend_on_the_size_of_gradients(size: float) -> None:
    """Nor explodes where their squares underflow."""
    parameter = nn.Parameter(torch.zeros(4, 5))
    optimizer = Soap([parameter], lr=1e-2)
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        parameter.grad = torch.randn(4, 5, generator=generator) * size
        optimizer.step()
    largest = float(parameter.detach().abs().max())
    assert largest < 0.5
    assert (largest > 1e-3) == (size > 1e-18)


def test_the_first_basis_does_not_hang_on_rounding() -> None:
    """Also where the first gradient has few directions, in single precision."""
    generator = torch.Generator().manual_seed(6)
    gradient = torch.randn(1, 64, 3, generator=generator) @ torch.randn(
        1, 3, 64, generator=generator
    )
    noise = 1 + 1e-7 * torch.randn(1, 64, 64, generator=generator)
    first, second = _start(gradient), _start(gradient * noise)
    for side in ("left_basis", "right_basis"):
        overlap = (first[side] * second[side]).sum(dim=1).abs()
        assert float(overlap.min()) > 0.99


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_out_of_bounds_do_not_raise(device: str, value: float) -> None:
    """Who computes the loss reports it, with the frames it is of."""
    parameter = nn.Parameter(torch.ones(4, 4, device=device))
    optimizer = Soap([parameter], refresh_every=2)
    for _ in range(6):
        parameter.grad = torch.full((4, 4), value, device=device)
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_captured_update_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    starts = [torch.randn(s, generator=generator) for s in ((2, 6, 8), (8,), (6, 8), (8, 3))]
    captured = [nn.Parameter(start.cuda()) for start in starts]
    eager = [nn.Parameter(start.cuda()) for start in starts]
    first, second = Soap(captured), Soap(eager)
    for step in range(40):
        gradients = [torch.randn(s.shape, generator=generator).cuda() for s in starts]
        for ours, theirs, gradient in zip(captured, eager, gradients, strict=True):
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for group in (*first.param_groups, *second.param_groups):
            group["lr"] = 1e-2 / (1 + step)
        first.step()
        with monkeypatch.context() as patch:
            patch.setattr(replay, "EAGER_CALLS", 1000)
            second.step()
        for ours, theirs in zip(captured, eager, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert first._update is not None
    assert first._update.replay.recorded
    assert second._update is not None
    assert not second._update.replay.recorded


def test_one_large_gradient_against_the_others_does_not_turn_a_training_back() -> None:
    def travel(spike: float, **settings: float) -> float:
        parameter = nn.Parameter(torch.zeros(4, 3))
        optimizer = Soap([parameter], lr=1e-2, weight_decay=0.0, **settings)
        for step in range(80):
            if step == 60:
                before = parameter.detach().clone()
            parameter.grad = torch.full((4, 3), 1.0 if step != 60 else spike)
            optimizer.step()
        return float((before - parameter.detach()).mean())

    straight = travel(1.0)
    assert travel(1.5) == travel(1.5, clip=math.inf), "within the norm nothing is clipped"
    assert travel(-1e3) > 0.25 * straight
    assert travel(-1e3, clip=math.inf) < 0.0


def test_clipping_lets_a_parameter_awake() -> None:
    """Without gradients so far nothing is typical, and a first one is taken as it is."""
    parameter = nn.Parameter(torch.zeros(3, 2))
    optimizer = Soap([parameter], lr=1e-2)
    for step in range(60):
        parameter.grad = torch.ones(3, 2) if step > 40 else torch.zeros(3, 2)
        optimizer.step()
    assert float(parameter.abs().min()) > 0.05


def test_a_state_from_before_clipping_goes_on() -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    parameter.grad = torch.ones(3, 2)
    optimizer = Soap([parameter])
    optimizer.step()
    state = optimizer.state_dict()
    del state["param_groups"][0]["clip"]
    restored = Soap([parameter])
    restored.load_state_dict(state)
    restored.step()
