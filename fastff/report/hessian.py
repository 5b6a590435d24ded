"""Accuracy of Hessian-vector products: how well a student follows its teacher's curvature.

Here: :class:`HessianAccuracy` and :func:`measure_hessian_vectors`. Not here: the accuracy of energies, forces and
stress, which decides whether a target is met (:mod:`fastff.report.metrics`), or labelling
(:mod:`fastff.distill.labelling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ase
import numpy as np

from fastff.errors import DataError
from fastff.labels import Frame, HessianVector, Labels


@dataclass(frozen=True)
class HessianAccuracy:
    """A student's Hessian-vector products against its teacher's, over all components of all frames.

    Attributes
    ----------
    accuracy : float
        ``1 - RMSE / RMS`` with the teacher's root mean square below the line.
    rmse, mae, rms : float
        Errors of the student, and size of the teacher's products, eV/Å^2.
    cosine : float
        Of the angle between all of the student's products and all of the teacher's.
    curvature_mae : float
        Mean error of ``u H u / u u``, the curvature of the energy along each direction, eV/Å^2.
    n_frames : int
        Frames that have a Hessian-vector target.
    """

    accuracy: float
    rmse: float
    mae: float
    rms: float
    cosine: float
    curvature_mae: float
    n_frames: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def measure_hessian_vectors(
    frames: Sequence[Frame], label: Callable[[Sequence[ase.Atoms]], list[Labels]]
) -> HessianAccuracy | None:
    """Compare central differences of forces at the same two displaced structures; None where no frame has a target.

    Parameters
    ----------
    frames : sequence of Frame
    label : callable
        Labels structures, such as ``partial(predict, student)``.

    Raises
    ------
    DataError
        All products of the teacher are zero.
    """
    known = [frame for frame in frames if frame.hessian_vector is not None]
    if not known:
        return None
    targets = [frame.hessian_vector for frame in known if frame.hessian_vector is not None]
    plus, minus = (
        label([_displace(f.atoms, t, sign) for f, t in zip(known, targets, strict=True)])
        for sign in (1, -1)
    )
    products = [
        HessianVector(t.direction, t.step, p.forces, m.forces).product
        for t, p, m in zip(targets, plus, minus, strict=True)
    ]
    return compare_products(targets, products)


def compare_products(
    targets: Sequence[HessianVector], products: Sequence[np.ndarray]
) -> HessianAccuracy:
    """Compare products (n_atoms, 3), eV/Å^2, with those of ``targets``.

    Raises
    ------
    DataError
        All products of the teacher are zero.
    """
    wanted = np.concatenate([target.product for target in targets])
    found = np.concatenate(products)
    rms = float(np.sqrt(np.mean(wanted**2)))
    if not rms > 0.0:
        raise DataError("all Hessian-vector products of the teacher are zero; check the labels")
    error = found - wanted
    rmse = float(np.sqrt(np.mean(error**2)))
    norms = float(np.linalg.norm(wanted) * np.linalg.norm(found))
    along = [
        np.sum((product - target.product) * target.direction) / np.sum(target.direction**2)
        for target, product in zip(targets, products, strict=True)
    ]
    return HessianAccuracy(
        accuracy=1.0 - rmse / rms,
        rmse=rmse,
        mae=float(np.mean(np.abs(error))),
        rms=rms,
        cosine=float(np.sum(wanted * found)) / norms if norms else 0.0,
        curvature_mae=float(np.mean(np.abs(along))),
        n_frames=len(targets),
    )


def _displace(atoms: ase.Atoms, target: HessianVector, sign: int) -> ase.Atoms:
    moved = atoms.copy()
    moved.positions += sign * target.step * target.direction
    return moved
