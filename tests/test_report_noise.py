"""The noise floor of a labeller, and held-out dynamics with seeds of its own."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from fastff.errors import DataError
from fastff.labels import Frame, Labels
from fastff.report.heldout import derive_seed, plan_heldout, run_heldout
from fastff.report.noise import NoiseFloor, measure_noise
from fastff.report.schema import LATER
from fastff.report.stages import measure_noises
from fastff.teachers import load_teacher
from fastff.teachers.noise import measure_disagreement


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("analytic:morse", device="cpu")


def test_held_out_frames_do_not_repeat_other_seeds(teacher):
    start = [bulk("Cu", cubic=True)]
    first, second = (
        run_heldout(
            teacher,
            plan_heldout(start, (300, 300), seed=s, n_frames=2, n_equilibrate=2, interval=2),
        )
        for s in (derive_seed("a"), derive_seed("b"))
    )
    assert not np.allclose(first[0].atoms.positions, second[0].atoms.positions, atol=1e-3)
    assert len(first[0].atoms) >= 27


def test_noise_of_a_rough_labeller_is_seen():
    random = np.random.default_rng(0)

    def label(structures):
        labels = []
        for atoms in structures:
            image = atoms.copy()
            image.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0, smooth=True)
            forces = image.get_forces()
            labels.append(
                Labels(
                    image.get_potential_energy(),
                    forces * (1 + 0.01 * random.normal(size=forces.shape)),
                    None,
                )
            )
        return labels

    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    noise = measure_noise(label, [atoms])
    assert 0.002 < noise.batch_force < 0.05
    assert 0.002 < noise.rotation_force < 0.05
    assert noise.rotation_energy < 1e-12


def test_batches_are_compared_in_shares_of_the_force():
    """A labeller whose forces are 1 % larger in batches, of a crystal with forces of any size."""

    def label(structures):
        labels = []
        for atoms in structures:
            image = atoms.copy()
            image.calc = LennardJones(sigma=2.3, epsilon=4.0, rc=5.0, smooth=True)
            factor = 1.01 if len(structures) > 1 else 1.0
            energy = image.get_potential_energy() + 0.002 * len(atoms) * (len(structures) > 1)
            labels.append(Labels(energy, factor * image.get_forces(), None))
        return labels

    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    noise = measure_noise(label, [atoms])
    assert (
        np.sqrt(np.mean(label([atoms])[0].forces ** 2)) > 2.0
    )  # eV/Å, so that a share is no force
    assert noise.batch_force == pytest.approx(0.01, rel=0.02)
    assert noise.batch_energy == pytest.approx(0.002, rel=0.02)


def test_each_side_has_its_own_noise(teacher):
    """A student that is rough beside a teacher that is smooth, in the stage that measures both."""
    random = np.random.default_rng(0)

    def be_rough(structures):
        return [
            Labels(
                found.energy,
                found.forces + random.normal(scale=0.05, size=found.forces.shape),
                None,
            )
            for found in teacher.label(structures)
        ]

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    frame = Frame(
        atoms=atoms, labels=teacher.label([atoms])[0], source="teacher-md", trajectory=0, step=0,
        temperature=300.0,
    )  # fmt: skip
    run = SimpleNamespace(
        plan=SimpleNamespace(n_noise=1), label=be_rough, teacher=teacher, durations={},
        progress=lambda *_: None, identify_student=lambda: {"sha256": "0" * 64},
    )  # fmt: skip
    found = SimpleNamespace()
    measure_noises(run, found, [frame])
    assert found.student_noise.force > 0.01 > 1e-6 > found.teacher_noise.force
    assert found.student_noise.identity == {"sha256": "0" * 64}
    assert found.teacher_noise.identity["name"] == teacher.info.name


def test_noise_needs_forces():
    def label(structures):
        return [Labels(0.0, np.zeros((len(a), 3)), None) for a in structures]

    with pytest.raises(DataError, match="all are zero"):
        measure_noise(label, [Atoms("Cu")])


def label_smooth(structures, step=0.0):
    """Strongly anharmonic smooth forces, rounded to multiples of ``step``."""
    labels = []
    for atoms in structures:
        image = atoms.copy()
        image.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0, smooth=True)
        forces = image.get_forces()
        forces = np.round(forces / step) * step if step else forces
        labels.append(Labels(image.get_potential_energy(), forces, None))
    return labels


def test_curvature_of_a_smooth_surface_is_no_noise():
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    # what is left comes from kinks of the switched potential; a second difference gives 5e-5 and more
    assert measure_noise(label_smooth, [atoms]).force < 2e-6


def test_the_step_of_rounded_forces_is_their_noise():
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    step = 2e-3
    noise = measure_disagreement(partial(label_smooth, step=step), [atoms])
    assert noise.jitter_force == pytest.approx(step / np.sqrt(12.0), rel=0.25)


def test_a_record_of_second_differences_keeps_its_digest_and_its_curvature_is_not_called_noise():
    old = {
        "rotation_force": 1e-5, "rotation_energy": 0.0, "jitter_force": 2e-3, "batch_force": 1e-6,
        "batch_energy": 0.0, "jitter": 1e-3, "n_frames": 2,
    }  # fmt: skip
    floor = NoiseFloor.model_validate(old)
    written = floor.model_dump(mode="json")
    assert {key: value for key, value in written.items() if key not in LATER} == old
    assert floor.force == 1e-5
