"""The physical properties of a record as they are shown.

Here: :func:`present_physics`, through which tables, figures and verdicts see them, and :func:`describe_item`. Not here:
deriving or verifying what a record holds, which stays as it is.

Older records hold pair distributions beyond half the box, where atoms meet their own images, and descriptions that do
not say all that is known today.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from fastff.report.physics.derive import derive_quantities
from fastff.report.physics.record import (
    AnyItem,
    EosItem,
    PhononItem,
    PhysicsPart,
    RdfCurve,
    RdfItem,
)
from fastff.report.physics.rest import describe_interpolated, describe_scaling
from fastff.units import show_formula

if TYPE_CHECKING:
    from fastff.report.schema import Comparison


def present_physics(part: PhysicsPart, main: Comparison) -> PhysicsPart:
    """The part with pair distributions up to half the box, what B0 is where the cell is not cubic, and the material's
    formula as chemists write it.

    ``main`` are the frames that decide, whose volume says how large a box was whose size is not recorded.
    """
    items = tuple(_present_item(item, part, main) for item in part.items)
    formula, comma, rest = part.material.partition(",")
    material = show_formula(formula, reduce=True) + comma + rest
    return part.model_copy(update={"items": items, "material": material})


def _present_item(item: AnyItem, part: PhysicsPart, main: Comparison) -> AnyItem:
    if isinstance(item, RdfItem):
        return _limit_reach(item, main.coverage.volume_per_atom)
    if isinstance(item, EosItem):
        return item.model_copy(update={"description": item.description + describe_scaling(part)})
    return item


def _limit_reach(item: RdfItem, volume: tuple[float, float] | None) -> RdfItem:
    """An item of an older record, cut at half the edge of a cube of the volume that its atoms had.

    No cell of that volume has all distances between its faces larger than that edge.
    """
    count = re.match(r"(\d+) atoms", item.description)
    if item.heights is not None or volume is None or count is None:
        return item
    edge = (int(count[1]) * volume[1]) ** (1.0 / 3.0)
    words = f"{item.description}; the box is not in this record, a cube of its volume has edges of {edge:.3g} Å"
    if item.curves[0].radii[-1] <= 0.5 * edge:
        return item.model_copy(update={"description": words})
    curves = tuple(_cut_curve(curve, 0.5 * edge) for curve in item.curves)
    cut = item.model_copy(
        update={
            "curves": curves,
            "description": f"{words}: shown and integrated up to half of that",
        }
    )
    fresh = {q.name: q for q in derive_quantities(cut)}
    quantities = tuple(
        fresh.get(q.name, q) if q.unit == "%" else q
        for q in item.quantities
        if q.unit == "%" or all(v is None or v <= 0.5 * edge for v in (q.teacher, q.student))
    )
    return cut.model_copy(update={"quantities": quantities})


def _cut_curve(curve: RdfCurve, reach: float) -> RdfCurve:
    count = int(np.searchsorted(curve.radii, reach))
    cut = {
        key: None if values is None else values[:count]
        for key, values in curve.model_dump(exclude={"pair"}).items()
    }
    return curve.model_copy(update=cut)


def describe_item(item: AnyItem) -> str:
    """What was done; records from before said of runs of the student alone that they were of each side."""
    if isinstance(item, PhononItem):
        return item.description + describe_interpolated(item)
    alone = isinstance(item, RdfItem) and all(curve.teacher is None for curve in item.curves)
    return (
        item.description.replace(" of each side after", " of the student alone after")
        if alone
        else item.description
    )
