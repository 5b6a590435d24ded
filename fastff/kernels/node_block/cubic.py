"""Cubic invariants as compile-time tables that Triton kernels unroll.

Here: the monomials of every coupling, and of their derivatives, as nested constants; device functions that walk them.
Not here: the coefficients (:mod:`fastff.kernels.couplings`), or kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.couplings import CUBIC_TRIPLES, list_cubic_terms

N_COMPONENTS = 16

Term = tuple[int, int, float]


def _differentiate_terms(component: int, kind: int) -> tuple[Term, ...]:
    """``(b, c, w)`` such that ``d(invariant)/dX_component = sum w X_b X_c``."""
    found: dict[tuple[int, int], float] = {}
    for *factors, weight in list_cubic_terms(*CUBIC_TRIPLES[kind]):
        for place in range(3):
            if factors[place] == component:
                b, c = sorted(factors[:place] + factors[place + 1 :])
                found[b, c] = found.get((b, c), 0.0) + weight
    return tuple((b, c, w) for (b, c), w in sorted(found.items()))


_TERMS = tuple(list_cubic_terms(*triple) for triple in CUBIC_TRIPLES)
_SLOPES = tuple(
    tuple(_differentiate_terms(component, kind) for kind in range(len(CUBIC_TRIPLES)))
    for component in range(N_COMPONENTS)
)
N_KINDS: tl.constexpr = tl.constexpr(len(CUBIC_TRIPLES))


@triton.constexpr_function
def count_terms(kind):
    """Number of monomials of one invariant."""
    return len(_TERMS[kind])


@triton.constexpr_function
def pick_term(kind, t, part):
    """First, second or third component of a monomial, or its coefficient."""
    return _TERMS[kind][t][part]


@triton.constexpr_function
def count_slopes(component, kind):
    """Number of monomials in the derivative of one invariant in one component."""
    return len(_SLOPES[component][kind])


@triton.constexpr_function
def pick_slope(component, kind, t, part):
    """First or second component of a derivative's monomial, or its coefficient."""
    return _SLOPES[component][kind][t][part]


@triton.constexpr_function
def find_degree(component):
    """Degree l of component lm."""
    return int(component >= 1) + int(component >= 4) + int(component >= 9)


@triton.jit
def evaluate_cubic(mixed, KIND: tl.constexpr):
    """One cubic invariant of the sixteen mixed components, each a tile."""
    total = tl.zeros_like(mixed[0])
    for t in tl.static_range(count_terms(KIND)):
        product = mixed[pick_term(KIND, t, 0)] * mixed[pick_term(KIND, t, 1)]
        total += (pick_term(KIND, t, 3) * mixed[pick_term(KIND, t, 2)]) * product
    return total


@triton.jit
def evaluate_cubic_slope(mixed, gradients, COMPONENT: tl.constexpr):
    """Gradient in one mixed component, given those in all eight invariants, of which the last four are cubic."""
    total = tl.zeros_like(mixed[0])
    for kind in tl.static_range(N_KINDS):
        if count_slopes(COMPONENT, kind) > 0:
            inner = tl.zeros_like(mixed[0])
            for t in tl.static_range(count_slopes(COMPONENT, kind)):
                first = mixed[pick_slope(COMPONENT, kind, t, 0)]
                second = mixed[pick_slope(COMPONENT, kind, t, 1)]
                inner += pick_slope(COMPONENT, kind, t, 2) * (first * second)
            total += inner * gradients[4 + kind]
    return total
