"""What ``study.py`` trains: the students and the ablations of them. Here: their sizes. Not here: training them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A student and the sizes in which it differs from its architecture."""

    name: str
    architecture: str
    sizes: dict[str, Any]
    cutoff: float = 5.0
    rate: float = 1.0
    """Learning rate relative to ``--learning-rate``."""


def vary(base: str, label: str, cutoff: float = 5.0, rate: float = 1.0, **sizes: Any) -> Variant:
    return Variant(f"{base}-{label}", base, sizes, cutoff, rate)


STUDENTS = [Variant(name, name, {}) for name in ("m1", "m2", "m2-l", "painn")]
ABLATIONS = [
    *(vary("m2", f"rc{r:g}", cutoff=r) for r in (4.0, 4.5, 5.5, 6.0)),
    *(vary("m2", f"c{n}", n_channels=n, n_mixed=n) for n in (8, 24)),
    *(vary("m2", f"k{n}", n_radial=n) for n in (4, 6, 12)),
    *(vary("m2", f"l{n}", l_max=n) for n in (1, 2)),
    *(vary("m2", f"body{n}", body_order=n) for n in (2, 3)),
    *(vary("m2", f"h{n}", hidden=(n, n)) for n in (32, 128)),
    vary("m2", "lr0.4", rate=0.4),
    vary("m1", "c32", n_channels=32, n_mixed=32),
    vary("m1", "c32-h128", n_channels=32, n_mixed=32, hidden=(128, 128)),
    vary("m1", "rc6", cutoff=6.0),
    vary("painn", "c64", n_channels=64, hidden=(64, 64)),
    vary("painn", "rc6", cutoff=6.0),
    vary("painn", "lr0.4", rate=0.4),
]
