"""Orb through fastff's adapter, with real Orb architectures and weights made here.

Published Orb weights are not used: every checkpoint is built from the package's own architectures with random weights
and saved as the published ones are, a bare state dict.
"""

from __future__ import annotations

import importlib
import inspect
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from fastff.errors import DataError, MissingDependencyError, UnsupportedElementError, UsageError
from fastff.teachers import load_teacher, orb_variants
from fastff.teachers.isolation import preserve_global_state
from fastff.teachers.orb import read_charge_and_spin
from fastff.teachers.orb_variants import VARIANTS, find_weights, name_variant

SMALL = {
    "latent_dim": 32,
    "base_mlp_hidden_dim": 48,
    "head_mlp_hidden_dim": 24,
    "num_message_passing_steps": 2,
}


def import_pretrained():  # type: ignore[no-untyped-def]
    pytest.importorskip("orb_models", reason="orb-models is not installed")
    return importlib.import_module("orb_models.forcefield.pretrained")


def save_checkpoint(path: Path, name: str, sizes: dict[str, int]) -> Path:
    """Random weights of a variant's architecture; reference energies and normalizers get values of their own."""
    pretrained = import_pretrained()
    kind = "conservative" if VARIANTS[name].conservative else "direct"
    build = getattr(pretrained, f"orb_v3_{kind}_architecture")
    molecular = VARIANTS[name].molecular
    with preserve_global_state():
        torch.manual_seed(3)
        model = build(
            device="cpu", has_charge_spin_cond=molecular, has_stress=not molecular, **sizes
        )
        state = model.state_dict()
        state["heads.energy.reference.linear.weight"] += torch.linspace(-4, 2, 118)
        state["heads.energy.normalizer.bn.running_var"] += 3.0
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orb")


def load_small(folder: Path, name: str, **options: object):  # type: ignore[no-untyped-def]
    path = folder / f"{name}.ckpt"
    if not path.exists():
        save_checkpoint(path, name, SMALL)
    return load_teacher(f"orb:{name}", weights=path, device="cpu", options=options)


def make_structures() -> list[Atoms]:
    structures = [
        molecule("CH3OH"),
        bulk("NaCl", "rocksalt", a=5.6, cubic=True),
        fcc111("Pt", (2, 2, 3), vacuum=8.0),
        bulk("Cu"),
    ]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=seed)
    return structures


@pytest.mark.parametrize("name", ["orb-v3-conservative-inf-omat", "orb-v3-direct-20-mpa"])
def test_equals_orb_calculator(folder: Path, name: str) -> None:
    """Our labels against Orb's own calculator, built from Orb's own loader with no help from the adapter."""
    pretrained = import_pretrained()
    teacher = load_small(folder, name, precision="float32-highest")
    structures = make_structures()
    labels = teacher.label(structures)
    kind = "conservative" if VARIANTS[name].conservative else "direct"
    attribute = f"orb_v3_{kind}_architecture"
    original = getattr(pretrained, attribute)
    with preserve_global_state():
        setattr(pretrained, attribute, partial(original, **SMALL))
        try:
            loaded = pretrained.ORB_PRETRAINED_MODELS[name](
                weights_path=str(folder / f"{name}.ckpt"),
                device="cpu",
                precision="float32-highest",
                compile=False,
            )
        finally:
            setattr(pretrained, attribute, original)
        new = isinstance(loaded, tuple)
        module = "orb_models.forcefield." + ("inference.calculator" if new else "calculator")
        make = importlib.import_module(module).ORBCalculator
        calculator = make(*loaded, device="cpu") if new else make(loaded, device="cpu")
        for atoms, found in zip(structures, labels, strict=True):
            reference = atoms.copy()
            if reference.pbc.any():
                reference.pbc = True
            reference.calc = calculator
            energy = float(reference.get_potential_energy())
            assert found.energy == pytest.approx(energy, abs=2e-5 * len(atoms))
            np.testing.assert_allclose(found.forces, reference.get_forces(), atol=2e-5)
            if atoms.pbc.all():
                np.testing.assert_allclose(found.stress, reference.get_stress(), atol=2e-6)
            else:
                assert found.stress is None
    assert max(np.abs(entry.forces).max() for entry in labels) > 1e-2


def test_its_own_calculator_agrees(folder: Path) -> None:
    import_pretrained()
    teacher = load_small(folder, "orb-v3-conservative-inf-omat")
    atoms = make_structures()[1]
    expected = teacher.label([atoms])[0]
    before = torch.get_float32_matmul_precision()
    atoms.calc = teacher.calculator()
    assert float(atoms.get_potential_energy()) == pytest.approx(expected.energy, abs=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-4)
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("name", ["orb-v3-conservative-inf-omat", "orb-v3-direct-inf-omat"])
def test_batched_equals_single(folder: Path, name: str) -> None:
    import_pretrained()
    teacher = load_small(folder, name, precision="float64")
    structures = make_structures()
    together = teacher.label(structures)
    for atoms, batched in zip(structures, together, strict=True):
        single = teacher.label([atoms])[0]
        assert batched.energy == pytest.approx(single.energy, abs=1e-9)
        np.testing.assert_allclose(batched.forces, single.forces, atol=1e-9)
    assert teacher.batch_atoms > 1  # the comparison did not end batching


def test_every_setting_says_the_same(folder: Path) -> None:
    import_pretrained()
    teacher = load_small(folder, "orb-v3-conservative-inf-omat")
    atoms = make_structures()[1]
    expected = teacher.label([atoms])[0]
    settings, missing = teacher.list_settings()
    assert missing == []
    assert settings[0].values == {
        "precision": "float32-high", "compile": False, "neighbors": "default"
    }  # fmt: skip
    assert {setting.values["compile"] for setting in settings} == {False, True}
    for setting in settings:
        atoms.calc = setting.make()
        compiled = any(m._compiled_call_impl is not None for m in atoms.calc.model.modules())
        assert compiled is setting.values["compile"]
        if not compiled:  # compiling takes longer than a test may
            np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-4)


def test_a_batch_that_differs_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_pretrained()
    teacher = load_small(folder, "orb-v3-conservative-inf-omat")
    honest = teacher._label_batch
    sizes = []

    def shift_batches(structures):  # type: ignore[no-untyped-def]
        sizes.append(len(structures))
        labels = honest(structures)
        if len(structures) > 1:
            object.__setattr__(labels[0], "energy", labels[0].energy + 1.0)
        return labels

    monkeypatch.setattr(teacher, "_label_batch", shift_batches)
    with pytest.warns(UserWarning, match="labels in a batch differ"):
        teacher.label(make_structures())
    assert sizes[-4:] == [1, 1, 1, 1]


def test_forces_and_stress_are_slopes_in_float64(folder: Path) -> None:
    import_pretrained()
    teacher = load_small(folder, "orb-v3-conservative-inf-omat", precision="float64")
    atoms = make_structures()[1]
    labels = teacher.label([atoms])[0]
    step, direction = 1e-4, np.random.default_rng(1).normal(size=(len(atoms), 3))
    copies = [atoms.copy() for _ in range(4)]
    copies[0].positions += step * direction
    copies[1].positions -= step * direction
    shear = np.zeros((3, 3))
    shear[1, 2] = shear[2, 1] = 0.5 * step
    copies[2].set_cell(atoms.cell.array @ (np.eye(3) + shear), scale_atoms=True)
    copies[3].set_cell(atoms.cell.array @ (np.eye(3) - shear), scale_atoms=True)
    energies = [entry.energy for entry in teacher.label(copies)]
    slope = -(energies[0] - energies[1]) / (2 * step)
    assert slope == pytest.approx((labels.forces * direction).sum(), abs=1e-6)
    strain = (energies[2] - energies[3]) / (2 * step) / atoms.get_volume()
    assert strain == pytest.approx(labels.stress[3], abs=1e-7)


def test_slab_without_third_vector_is_read_rightly(folder: Path) -> None:
    """Orb alone finds 118 or 1,440 of the 456 edges of this slab; completed, it equals the padded slab."""
    import_pretrained()
    teacher = load_small(folder, "orb-v3-conservative-inf-omat", precision="float64")
    padded = fcc111("Pt", (2, 2, 3), vacuum=10.0)
    bare = padded.copy()
    bare.cell[2] = 0.0
    first, second = teacher.label([padded, bare])
    assert first.energy == pytest.approx(second.energy, abs=1e-8)
    np.testing.assert_allclose(first.forces, second.forces, atol=1e-8)


def test_charge_and_spin_change_an_omol_model(folder: Path) -> None:
    import_pretrained()
    teacher = load_small(folder, "orb-v3-conservative-omol", precision="float64")
    neutral, cation = molecule("H2O"), molecule("H2O")
    cation.info.update(charge=1, spin=2)
    charged = molecule("H2O")
    charged.set_initial_charges([1.0, 0.0, 0.0])
    first, second, third = teacher.label([neutral, cation, charged])
    assert abs(first.energy - second.energy) > 1e-4
    assert second.energy == pytest.approx(third.energy, abs=1e-10)
    cation.info["spin"] = 1
    with pytest.raises(DataError, match="9 electrons"):
        teacher.label([cation])
    assert teacher.info.settings == "precision=float64"
    other = load_small(folder, "orb-v3-conservative-omol", charge=1, spin=2)
    assert other.info.settings == "charge=1, spin=2"


@pytest.mark.slow
def test_published_size_loads_from_a_path(folder: Path) -> None:
    import_pretrained()
    path = save_checkpoint(folder / "full.ckpt", "orb-v3-conservative-inf-omat", {})
    assert 90e6 < path.stat().st_size < 120e6
    teacher = load_teacher("orb", weights=path, device="cpu")
    labels = teacher.label([bulk("Cu", cubic=True)])[0]
    assert np.isfinite(labels.energy)
    assert teacher.info.conservative
    assert len(teacher.info.weights_sha256 or "") == 64


def test_direct_and_truncated_models_are_named(folder: Path) -> None:
    import_pretrained()
    teacher = load_small(folder, "orb-v3-direct-20-mpa")
    assert not teacher.info.conservative
    assert any("Direct model" in note for note in teacher.info.notes)
    assert any("At most 20" in note for note in teacher.info.notes)
    with pytest.raises(UnsupportedElementError, match="Rn"):
        teacher.label([Atoms("Rn2", [[0, 0, 0], [0, 0, 3]])])


def test_wrong_files_and_options(folder: Path, tmp_path: Path) -> None:
    import_pretrained()
    page = tmp_path / "page.ckpt"
    page.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="not an Orb v3 checkpoint"):
        load_teacher("orb", weights=page, device="cpu")
    direct = save_checkpoint(tmp_path / "direct.ckpt", "orb-v3-direct-inf-omat", SMALL)
    with pytest.raises(DataError, match="does not hold weights of orb-v3-conservative-inf-omat"):
        load_teacher("orb", weights=direct, device="cpu")
    conservative = save_checkpoint(tmp_path / "c.ckpt", "orb-v3-conservative-inf-omat", SMALL)
    with pytest.raises(DataError, match="does not hold weights of orb-v3-direct-inf-omat"):
        load_teacher("orb:v3-direct-inf-omat", weights=conservative, device="cpu")
    with pytest.raises(UsageError, match="precision"):
        load_teacher("orb", weights=direct, device="cpu", options={"precision": "float16"})
    with pytest.raises(UsageError, match="neither charge nor spin"):
        load_teacher("orb", weights=direct, device="cpu", options={"charge": 1})
    with pytest.raises(MissingDependencyError, match="not found"):
        load_teacher("orb", weights=tmp_path / "absent.ckpt", device="cpu")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("orb-v2", "orb-v2"),
        ("v3-direct-20-mpa", "orb-v3-direct-20-mpa"),
        ("orb_v3_conservative_inf_omat", "orb-v3-conservative-inf-omat"),
        ("ORB-V3-Direct-Omol", "orb-v3-direct-omol"),
        ("orbmol-v1-conservative", "orb-v3-conservative-omol"),
        ("orbmol_v1_direct", "orb-v3-direct-omol"),
    ],
)
def test_names_of_the_package_and_its_functions_are_known(given: str, name: str) -> None:
    assert name_variant(given) == name


def test_the_package_offers_no_model_under_a_name_of_ours_alone() -> None:
    """Every loader of energies and forces that is no longer refused has a name here."""
    pretrained = import_pretrained()
    for name in pretrained.ORB_PRETRAINED_MODELS:
        if "v1" not in name.replace("orbmol-v1", "") and not name.startswith("separate"):
            assert name_variant(name) in VARIANTS


def test_table_equals_the_package() -> None:
    pretrained = import_pretrained()
    checked = 0
    for name, variant in VARIANTS.items():
        loader = pretrained.ORB_PRETRAINED_MODELS.get(name)
        if loader is not None:
            assert inspect.signature(loader).parameters["weights_path"].default == variant.url
            checked += 1
    assert checked >= 15


def test_without_weights_and_network_it_fails_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHED_PATH_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("FASTFF_OFFLINE", "1")
    name = orb_variants.DEFAULT
    with pytest.raises(MissingDependencyError, match="FASTFF_OFFLINE") as caught:
        find_weights(name, VARIANTS[name])
    message = str(caught.value)
    assert VARIANTS[name].url in message
    assert "--teacher-weights PATH" in message
    assert "\n" not in message

    monkeypatch.delenv("FASTFF_OFFLINE")
    monkeypatch.setattr(orb_variants, "PROBE_SECONDS", 0.2)

    def hang(*args: object, **kwargs: object) -> None:
        time.sleep(3)
        raise OSError("too late to matter")

    monkeypatch.setattr(orb_variants.urllib.request, "urlopen", hang)
    start = time.monotonic()
    with pytest.raises(MissingDependencyError, match="no answer in"):
        find_weights(name, VARIANTS[name])
    assert time.monotonic() - start < 2.5

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(orb_variants.urllib.request, "urlopen", refuse)
    with pytest.raises(MissingDependencyError, match="Network is unreachable"):
        find_weights(name, VARIANTS[name])


def test_cached_weights_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHED_PATH_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("FASTFF_OFFLINE", "1")
    name = orb_variants.DEFAULT
    import hashlib

    stem = hashlib.sha256(VARIANTS[name].url.encode()).hexdigest()
    (tmp_path / f"{stem}.etag.json").write_text("{}")
    assert orb_variants.find_cached_weights(VARIANTS[name]) is None
    (tmp_path / f"{stem}.etag").write_bytes(b"weights")
    assert find_weights(name, VARIANTS[name]) == str(tmp_path / f"{stem}.etag")


def test_charge_and_spin_order() -> None:
    atoms = molecule("NH2")
    assert read_charge_and_spin(atoms, {}) == {"charge": 0, "spin": 2}
    atoms.info["charge"] = -1
    assert read_charge_and_spin(atoms, {}) == {"charge": -1, "spin": 1}
    assert read_charge_and_spin(atoms, {"charge": 0, "spin": 4}) == {"charge": 0, "spin": 4}
    atoms.info["charge"] = 0.4
    with pytest.raises(DataError, match="not whole"):
        read_charge_and_spin(atoms, {})
