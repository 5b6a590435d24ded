"""The definition of the sum over segments against numbers built by hand."""

from __future__ import annotations

import pytest
import torch

from fastff.errors import DataError
from fastff.kernels.segment_sum import segment_gather, segment_sum

VALUES = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])


def test_values_by_hand():
    pointers = torch.tensor([0, 0, 2, 3, 3])
    expected = torch.tensor([[0.0, 0.0], [3.0, 30.0], [4.0, 40.0], [0.0, 0.0]])
    assert torch.equal(segment_sum(VALUES, pointers), expected)


def test_gather_by_hand():
    pointers = torch.tensor([0, 2, 2, 3])
    expected = torch.tensor([[1.0, 10.0], [1.0, 10.0], [4.0, 40.0]])
    assert torch.equal(segment_gather(VALUES, pointers, 3), expected)


def test_gather_is_the_adjoint():
    pointers = torch.tensor([0, 2, 2, 3])
    sums = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    left = (segment_sum(VALUES, pointers) * sums).sum()
    right = (VALUES * segment_gather(sums, pointers, 3)).sum()
    assert left == right


def test_gradients():
    values = VALUES.double().requires_grad_()
    pointers = torch.tensor([0, 2, 2, 3])
    assert torch.autograd.gradcheck(lambda v: segment_sum(v, pointers), (values,))
    assert torch.autograd.gradgradcheck(lambda v: segment_sum(v, pointers), (values,))


def test_half_precision_runs_on_torch():
    assert segment_sum(VALUES.half(), torch.tensor([0, 3])).dtype == torch.float16


@pytest.mark.parametrize(
    ("values", "pointers", "message"),
    [
        (VALUES.long(), torch.tensor([0, 3]), r"dtype torch\.int64"),
        (VALUES, torch.zeros(0, dtype=torch.int64), r"pointers have shape \(0,\)"),
        (VALUES, torch.tensor([0.0, 3.0]), r"pointers are torch\.float32; pass int32 or int64"),
        (VALUES, torch.tensor([0, 2]), "ascend from 0 to the number of rows 3, got 0 to 2"),
        (VALUES, torch.tensor([1, 3]), "got 1 to 3"),
        (VALUES, torch.tensor([0, 2, 1, 3]), "must ascend"),
        (VALUES, torch.tensor([0, 3], device="meta"), "pointers on meta"),
    ],
)
def test_bad_input_is_refused(values, pointers, message):
    with pytest.raises(DataError, match=message):
        segment_sum(values, pointers)


def test_gather_refuses_another_number_of_segments():
    with pytest.raises(DataError, match="3 values for 1 segments"):
        segment_gather(VALUES, torch.tensor([0, 3]), 3)
