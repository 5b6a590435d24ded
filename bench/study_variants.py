"""What ``study.py`` trains: the students and the ablations of them. Here: their sizes. Not here: training them."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    optimizer: str = "soap"
    batch: float = 1.0
    """Atoms of a batch relative to ``--batch-atoms``."""
    share: float = 1.0
    """Of the trajectories for training, how many are trained on."""
    soap: dict[str, Any] = field(default_factory=dict)
    """Arguments of the optimiser that differ."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of the loss that differ."""


def vary(
    base: str,
    label: str,
    cutoff: float = 5.0,
    rate: float = 1.0,
    optimizer: str = "soap",
    batch: float = 1.0,
    share: float = 1.0,
    soap: dict[str, Any] | None = None,
    weights: dict[str, float] | None = None,
    **sizes: Any,
) -> Variant:
    return Variant(
        f"{base}-{label}", base, sizes, cutoff, rate, optimizer, batch, share, soap or {}, weights or {}
    )  # fmt: skip


C64 = {"n_channels": 64, "n_mixed": 64}
HOP3 = {"n_hops": 3, "message_degree": 1}
LONG = {"betas": (0.95, 0.99), "basis_decay": 0.99}
"""Averages of the optimiser that forget within a hundred steps instead of twenty."""
FORCES = {"weights": {"energy": 0.1, "stress": 0.03}}
STUDENTS = [Variant(name, name, {}) for name in ("m1", "m2", "m2-l", "painn")]
ABLATIONS = [
    *(vary("m2", f"rc{r:g}", cutoff=r) for r in (4.0, 4.5, 5.5, 6.0)),
    *(vary("m2", f"c{n}", n_channels=n, n_mixed=n) for n in (8, 24)),
    *(vary("m2", f"k{n}", n_radial=n) for n in (4, 6, 12)),
    *(vary("m2", f"l{n}", l_max=n) for n in (1, 2)),
    *(vary("m2", f"body{n}", body_order=n) for n in (2, 3)),
    *(vary("m2", f"h{n}", hidden=(n, n)) for n in (32, 128)),
    vary("m2", "adamw", optimizer="adamw"),
    *(vary("m2", f"lr{r:g}", rate=r) for r in (0.5, 2.0)),
    *(vary("m2", f"b{b:g}", batch=b) for b in (0.25, 4.0)),
    vary("m2", "q32", n_mixed=32),
    vary("m2", "q32-h128", n_mixed=32, hidden=(128, 128)),
    vary("m2-l", "h128", hidden=(128, 128)),
    vary("m2-l", "k12-h128", n_radial=12, hidden=(128, 128)),
    vary("m2-l", "rc6", cutoff=6.0),
    vary("m2-l", "rc6-h128", cutoff=6.0, hidden=(128, 128)),
    vary("m2-l", "rc6-c48-h128", cutoff=6.0, n_channels=48, n_mixed=48, hidden=(128, 128)),
    vary("m2-l", "c48-h128", n_channels=48, n_mixed=48, hidden=(128, 128)),
    vary("m2", "hop3", n_hops=3),
    vary("m2", "rc6-hop3", cutoff=6.0, n_hops=3),
    vary("m2-l", "hop3", n_hops=3),
    vary("m2-l", "rc6-hop3", cutoff=6.0, n_hops=3),
    *(
        vary("m2-l", f"{at}{label}", r, **sizes)
        for at, r in (("", 5.0), ("rc6-", 6.0))
        for label, sizes in (
            ("d1", {"message_degree": 1}),
            ("d2", {"message_degree": 2}),
            ("hop3-slow", {"rate": 0.4, "n_hops": 3}),
            ("hop3-d1-slow", {"rate": 0.4, **HOP3}),
            ("hop3-d1", HOP3),
            ("c48-d1", {"n_channels": 48, "n_mixed": 48, "message_degree": 1}),
            ("c64-d1", {**C64, "message_degree": 1}),
            ("c64-d1-slow", {"rate": 0.4, **C64, "message_degree": 1}),
            *(
                (f"c64-hop3-d1-{end}", {"rate": rate, **C64, **HOP3})
                for end, rate in (("slow", 0.4), ("slower", 0.2), ("slowest", 0.1))
            ),
        )
    ),
    *(
        vary("m2-l", f"rc6-{wide}hop3-d1{end}-b{batch:g}", 6.0, rate, batch=batch, **HOP3, **sizes)
        for wide, sizes in (("", {}), ("c64-", C64))
        for end, rate in (("", 1.0), ("-slow", 0.4), ("-slower", 0.2))
        for batch in (2.0, 4.0)
    ),
    vary("m2-l", "rc6-hop3-d1-slower", 6.0, 0.2, **HOP3),
    *(
        vary("m2-l", f"rc6-{wide}hop3-d1-{label}", 6.0, **HOP3, **sizes, **changes)
        for wide, sizes in (("", {}), ("c64-", C64))
        for label, changes in (
            ("fast-b4", {"rate": 2.0, "batch": 4.0}),
            ("b2-long", {"batch": 2.0, "soap": LONG}),
            ("long", {"soap": LONG}),
            ("slow-long", {"rate": 0.4, "soap": LONG}),
            *(
                (f"slow-b2-{name}", {"rate": 0.4, "batch": 2.0, **change})
                for name, change in (
                    ("often", {"soap": {"refresh_every": 3}}),
                    ("fine", {"soap": {"eps": 1e-5}}),
                    ("forces", FORCES),
                    ("h128", {"hidden": (128, 128)}),
                    ("h128-forces", {"hidden": (128, 128), **FORCES}),
                )
            ),
        )
    ),
    vary("m2-l", "rc6-c64-d1-b2", 6.0, batch=2.0, message_degree=1, **C64),
    vary(
        "m2-l", "rc6-c128-hop3-d1-slow-b2", 6.0, 0.4, batch=2.0, n_channels=128, n_mixed=128, **HOP3
    ),
    *(
        vary("m2-l", f"rc{cutoff:g}-{label}-slow-b2", cutoff, 0.4, batch=2.0, **{**HOP3, **sizes})
        for cutoff, label, sizes in (
            (7.0, "hop3-d1", {}),
            (7.0, "c64-hop3-d1", C64),
            (7.0, "c64-k12-hop3-d1", {**C64, "n_radial": 12}),
            (6.0, "c64-k12-hop3-d1", {**C64, "n_radial": 12}),
            (6.0, "c64-hop3-d2", {**C64, "message_degree": 2}),
            (6.0, "hop4-d1", {"n_hops": 4}),
            (6.0, "c64-hop4-d1", {**C64, "n_hops": 4}),
        )
    ),
    vary("m2-l", "rc7", cutoff=7.0),
    vary("m2-l", "rc6-k12", cutoff=6.0, n_radial=12),
    vary("m2-l", "rc6-b4", cutoff=6.0, batch=4.0),
    *(vary("m2-l", f"rc6-share{s:g}", cutoff=6.0, share=s) for s in (0.25, 0.5)),
    vary("m1", "q32", n_mixed=32),
    vary("m1", "q32-h128", n_mixed=32, hidden=(128, 128)),
    vary("m1", "rc6-q32-h128", cutoff=6.0, n_mixed=32, hidden=(128, 128)),
    vary("m1", "c32", n_channels=32, n_mixed=32),
    vary("m1", "c32-h128", n_channels=32, n_mixed=32, hidden=(128, 128)),
    vary("m1", "rc6", cutoff=6.0),
    vary("painn", "c64", n_channels=64, hidden=(64, 64)),
    vary("painn", "rc6", cutoff=6.0),
    vary("painn", "adamw", optimizer="adamw"),
    vary("painn", "slow", rate=0.4),
    vary("painn", "adamw-slow", rate=0.2, optimizer="adamw"),
]
