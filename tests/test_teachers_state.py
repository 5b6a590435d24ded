"""Teachers leave the process as they found it, and the user's terminal alone."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones

from fastff.errors import MissingDependencyError
from fastff.teachers import list_teachers, load_teacher, weights
from fastff.teachers.isolation import hush, preserve_global_state


class Vandal(LennardJones):
    """A calculator that changes every process-wide setting it can reach, and prints."""

    def calculate(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        print("loading model on cpu ...")
        warnings.warn(
            "No tensor product accelerator is enabled for this", UserWarning, stacklevel=1
        )
        warnings.warn("atom 3 has no neighbours; labels are wrong", UserWarning, stacklevel=1)
        vandalize()
        super().calculate(*args, **kwargs)


def vandalize() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    np.seterr(divide="ignore")
    warnings.simplefilter("ignore")


def read_state() -> dict[str, object]:
    return {
        "dtype": torch.get_default_dtype(),
        "matmul": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "torch_rng": torch.get_rng_state().tolist(),
        "numpy_rng": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python_rng": random.getstate(),
        "numpy_errors": np.geterr(),
        "filters": list(warnings.filters),
    }


@pytest.mark.filterwarnings("ignore:atom 3")
def test_state_is_the_same_after_a_vandal() -> None:
    teacher = load_teacher(f"ase:{__name__}:Vandal")
    with torch.no_grad():
        before = read_state()
        teacher.label([bulk("Ar")])
        after = read_state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_state_is_the_same_after_an_error() -> None:
    before = read_state()

    def fail_late() -> None:
        vandalize()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), preserve_global_state():
        fail_late()
    after = read_state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_gradients_work_inside_even_if_the_caller_turned_them_off() -> None:
    teacher = load_teacher("analytic:morse", device="cpu")
    expected = teacher.label([bulk("Cu")])[0].stress
    with torch.inference_mode():
        np.testing.assert_array_equal(teacher.label([bulk("Cu")])[0].stress, expected)


PACKAGES = {"sevennet": "sevenn", "chgnet": "chgnet"}


@pytest.mark.parametrize("spec", ["sevennet", "chgnet"])
def test_state_is_the_same_after_a_real_teacher(
    spec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PACKAGES[spec])
    before = read_state()
    teacher = load_teacher(spec, device="cpu")
    teacher.label([bulk("Cu", cubic=True)])
    teacher.calculator()
    after = read_state()
    assert {key for key in before if before[key] != after[key]} == set()
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


@pytest.mark.parametrize("spec", ["analytic:angular", "sevennet", "chgnet"])
def test_labels_do_not_depend_on_the_caller_settings(spec: str) -> None:
    if spec in PACKAGES:
        pytest.importorskip(PACKAGES[spec])
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    expected = load_teacher(spec, device="cpu").label([atoms])[0]
    with preserve_global_state():
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        found = load_teacher(spec, device="cpu").label([atoms])[0]
        assert torch.get_default_dtype() == torch.float64
    np.testing.assert_array_equal(found.forces, expected.forces)


def test_chatter_is_dropped_and_correctness_kept(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = load_teacher(f"ase:{__name__}:Vandal")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        teacher.label([bulk("Ar")])
    assert [str(entry.message) for entry in caught] == [
        "atom 3 has no neighbours; labels are wrong"
    ]
    assert capsys.readouterr().out == ""


def test_prints_come_back_with_an_error() -> None:
    def complain() -> None:
        print("weights are from another version")
        raise ValueError("bad weights")

    with pytest.raises(ValueError, match="bad weights") as caught, hush():
        complain()
    assert "another version" in caught.value.__notes__[0]


@pytest.mark.parametrize(("spec", "extra"), [("sevennet", "sevennet"), ("chgnet", "chgnet")])
def test_missing_package_says_what_to_install(
    spec: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "find_package", lambda name: None)
    start = time.monotonic()
    with pytest.raises(MissingDependencyError) as caught:
        load_teacher(spec)
    assert time.monotonic() - start < 1.0
    assert f"pip install 'fastff[{extra}]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_import_and_listing_load_no_teacher_package() -> None:
    code = (
        "import sys, fastff.teachers as t; t.list_teachers();"
        "print([m for m in ('sevenn','chgnet','orb_models','fennol','jax','pymatgen','e3nn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_is_complete_and_names_load() -> None:
    names = {status.name for status in list_teachers()}
    assert {"sevennet:7net-0", "sevennet:7net-l3i5", "sevennet:7net-mf-0"} <= names
    assert {"chgnet:0.3.0", "chgnet:r2scan", "chgnet:0.2.0", "analytic:morse"} <= names
    for status in list_teachers():
        if status.family == "analytic":
            assert len(load_teacher(status.name).info.elements) == status.n_elements
