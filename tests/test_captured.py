"""Losses recorded on a GPU, compiled or not: the same values and gradients, and what happens without a compiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emt_frames import label_by_emt, make_alloys
from torch import Tensor, nn

from fastff.distill import captured
from fastff.distill.captured import COMPILED_STEPS, CapturedLosses, compile_losses
from fastff.distill.data import build_loader
from fastff.distill.ladder import Ladder
from fastff.distill.losses import ResidualLosses, pick_fields
from fastff.distill.module import DistillationModule
from fastff.distill.request import build_request
from fastff.distill.split import Split
from fastff.distill.train import TrainSettings, prepare_student, train_student

SETTINGS = TrainSettings(architecture="m2", cutoff=4.0, batch_atoms=16, device="cpu")


class StopError(Exception):
    """Enough was seen."""


def prepare(device: str, n_frames: int = 4) -> tuple[ResidualLosses, tuple[Tensor, ...]]:
    frames = label_by_emt(make_alloys(n_frames))
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


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile that traces and differentiates but generates no code."""
    compile_all = torch.compile

    def trace(module: nn.Module, **options: Any) -> Any:
        return compile_all(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", trace)


@pytest.mark.usefixtures("traced")
def test_one_graph_serves_all_trainings_of_a_student_and_a_batch() -> None:
    """Tables are constants, and neither weights nor units are: what is compiled once fits the next round."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for n_frames in (4, 6):
        losses, fields = prepare("cpu", n_frames)
        compiled = compile_losses(losses, fields)
        pairs = zip(
            differentiate(compiled, losses, fields),
            differentiate(losses, losses, fields),
            strict=True,
        )
        for own, other in pairs:
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def replace_recording(monkeypatch: pytest.MonkeyPatch, compiler: Any) -> list[nn.Module]:
    """Note what would be recorded."""
    recorded: list[nn.Module] = []

    def note(module: nn.Module, _: Any) -> nn.Module:
        recorded.append(module)
        return module

    monkeypatch.setattr(captured, "compile_losses", compiler)
    monkeypatch.setattr(captured, "record", note)
    monkeypatch.setattr(captured, "_compiled", set())
    return recorded


def test_without_a_compiler_the_kernels_of_torch_are_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses, fields = prepare("cpu")

    def fail(*_: Any) -> nn.Module:
        raise RuntimeError("no C compiler\nand more")

    recorded = replace_recording(monkeypatch, fail)
    replay = CapturedLosses(losses, compiled=True)
    assert replay._capture(fields) is recorded[0]
    assert isinstance(recorded[0], ResidualLosses)
    assert not replay.compiled
    assert caplog.messages == ["training is not compiled: RuntimeError: no C compiler"]
    assert not captured._compiled


def test_long_trainings_are_compiled_and_short_ones_where_code_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses, fields = prepare("cpu")
    replace_recording(monkeypatch, lambda module, _: module)

    def compiles(n_steps: int, wanted: bool | None = None, cut: int = 0) -> bool:
        replay = CapturedLosses(losses, n_steps, compiled=wanted)
        replay._capture((fields[0][cut:], *fields[1:]))
        return replay.compiled

    assert not compiles(COMPILED_STEPS - 1)
    assert not compiles(COMPILED_STEPS, wanted=False)
    assert compiles(COMPILED_STEPS)
    assert compiles(100)
    assert not compiles(100, cut=1)  # another shape
    assert compiles(100, wanted=True, cut=1)
    replay = CapturedLosses(losses, 10 * COMPILED_STEPS)
    replay._capture((*fields, fields[7], fields[7]))  # targets of Hessians
    assert not replay.compiled


def test_the_trainer_says_how_many_steps_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool | None]] = []
    make = DistillationModule.__init__

    def note(self: DistillationModule, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        seen.append((self._losses._n_steps, self._losses._wanted))
        raise StopError

    monkeypatch.setattr(DistillationModule, "__init__", note)
    frames = label_by_emt(make_alloys(6))
    for compiled in (None, False):
        settings = replace(SETTINGS, architecture="m1", n_steps=8000, compiled=compiled)
        with pytest.raises(StopError):
            train_student(frames[:4], frames[4:], settings, tmp_path / "out")
    assert seen == [(8000, None), (8000, False)]


@pytest.mark.parametrize(
    ("n_steps", "devices", "grow", "wanted"),
    [
        (COMPILED_STEPS, 1, True, True),
        (COMPILED_STEPS, 1, False, None),
        (COMPILED_STEPS - 1, 1, True, None),
        (COMPILED_STEPS, 2, True, None),
    ],
)
def test_a_first_training_is_compiled_for_those_that_follow(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    n_steps: int,
    devices: int,
    grow: bool,
    wanted: bool | None,
) -> None:
    """Before rounds few steps are taken, but this process trains again; several devices have processes of their own."""
    seen: list[TrainSettings] = []
    frames = label_by_emt(make_alloys(6))
    split = Split(frames[:4], frames[4:5], frames[5:])
    request = build_request(labels=tmp_path / "l.h5", student="m1", n_steps=n_steps)

    def note(name: str, settings: TrainSettings) -> None:
        seen.append(settings)
        raise StopError

    ladder = Ladder(
        request, tmp_path, "cpu", False, note, lambda _: None, lambda *_: None, devices=devices
    )
    with pytest.raises(StopError):
        ladder.train("m1", split, "first", grow=grow)
    assert [settings.compiled for settings in seen] == [wanted]


@pytest.mark.gpu
def test_compiled_losses_equal_eager_ones_and_their_code_is_used_again() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for n_frames, n_steps in ((4, COMPILED_STEPS), (6, 1)):
        losses, fields = prepare("cuda", n_frames)
        replay = CapturedLosses(losses, n_steps)
        for shift in (0.0, 0.0, 0.01):
            moved = (fields[0] + shift, *fields[1:])
            found = [differentiate(f, losses, moved) for f in (replay, losses)]
            for own, other in zip(*found, strict=True):
                torch.testing.assert_close(own, other, rtol=2e-3, atol=1e-4)
        assert replay.compiled
    assert counters["stats"]["unique_graphs"] == 1
