"""Losses recorded on a GPU, compiled or not: the same values and gradients, and what happens without a compiler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from emt_frames import label_by_emt, make_alloys
from torch import Tensor, nn

from fastff.distill import captured
from fastff.distill.captured import COMPILED_STEPS, CapturedLosses, compile_losses
from fastff.distill.data import build_loader
from fastff.distill.losses import ResidualLosses, pick_fields
from fastff.distill.module import DistillationModule
from fastff.distill.train import TrainSettings, prepare_student, train_student

SETTINGS = TrainSettings(architecture="m2", cutoff=4.0, batch_atoms=16, device="cpu")


def prepare(device: str) -> tuple[ResidualLosses, tuple[Tensor, ...]]:
    frames = label_by_emt(make_alloys(4))
    student, statistics = prepare_student(frames, SETTINGS)
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.numel() > 0)
    loader = build_loader(frames, student, 4, seed=0)
    fields = pick_fields(next(iter(loader)))
    student.to(device)
    return ResidualLosses(student, statistics), tuple(field.to(device) for field in fields)


def differentiate(evaluate: Any, losses: nn.Module, fields: tuple[Tensor, ...]) -> list[Tensor]:
    terms = evaluate(*fields)
    known = [p for p in losses.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(terms.sum(), known)
    return [terms.detach().clone(), *(gradient.clone() for gradient in gradients)]


def test_a_compiler_gets_the_losses_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables are constants; a break would cost a compilation and what could be joined across it."""
    losses, fields = prepare("cpu")
    compile_all = torch.compile

    def trace(module: nn.Module, **options: Any) -> Any:
        return compile_all(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", trace)
    compiled = compile_losses(losses, fields)
    for own, other in zip(
        differentiate(compiled, losses, fields), differentiate(losses, losses, fields), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_without_a_compiler_the_kernels_of_torch_are_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses, fields = prepare("cpu")
    recorded: list[nn.Module] = []

    def fail(*_: Any) -> nn.Module:
        raise RuntimeError("no C compiler\nand more")

    def note(module: nn.Module, _: Any) -> nn.Module:
        recorded.append(module)
        return module

    monkeypatch.setattr(captured, "compile_losses", fail)
    monkeypatch.setattr(captured, "record", note)
    replay = CapturedLosses(losses, compiled=True)
    assert replay._capture(fields) is recorded[0]
    assert isinstance(recorded[0], ResidualLosses)
    assert not replay.compiled
    assert caplog.messages == ["training is not compiled: RuntimeError: no C compiler"]


def test_targets_of_hessians_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, fields = prepare("cpu")
    monkeypatch.setattr(captured, "compile_losses", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(captured, "record", lambda module, _: module)
    CapturedLosses(losses, compiled=True)._capture((*fields, fields[7], fields[7]))


@pytest.mark.parametrize(
    ("n_steps", "compiled", "wanted"),
    [
        (COMPILED_STEPS, None, True),
        (COMPILED_STEPS - 1, None, False),
        (COMPILED_STEPS, False, False),
        (5, True, True),
    ],
)
def test_long_trainings_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    n_steps: int,
    compiled: bool | None,
    wanted: bool,
) -> None:
    seen: list[bool] = []
    make = DistillationModule.__init__

    class StopError(Exception):
        pass

    def note(self: DistillationModule, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        seen.append(self._losses.compiled)
        raise StopError

    monkeypatch.setattr(DistillationModule, "__init__", note)
    settings = replace(SETTINGS, architecture="m1", n_steps=n_steps, compiled=compiled)
    frames = label_by_emt(make_alloys(6))
    with pytest.raises(StopError):
        train_student(frames[:4], frames[4:], settings, tmp_path / "out")
    assert seen == [wanted]


@pytest.mark.gpu
def test_compiled_losses_equal_eager_ones() -> None:
    losses, fields = prepare("cuda")
    replay = CapturedLosses(losses, compiled=True)
    for shift in (0.0, 0.01):
        moved = (fields[0] + shift, *fields[1:])
        found = [differentiate(f, losses, moved) for f in (replay, losses)]
        assert replay.compiled
        for own, other in zip(*found, strict=True):
            torch.testing.assert_close(own, other, rtol=2e-3, atol=1e-4)
