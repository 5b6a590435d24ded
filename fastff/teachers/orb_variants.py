"""The published Orb models: names, where their weights come from, and what is known of each.

Here: the table of variants, and finding their weight files on this machine. Not here: loading a model
(:mod:`fastff.teachers.orb`).
"""

from __future__ import annotations

import hashlib
import os
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from fastff.errors import MissingDependencyError
from fastff.teachers.base import pick_variant
from fastff.teachers.sevennet import UNIVERSAL_ELEMENTS
from fastff.teachers.weights import is_offline

_HOST = "https://orbitalmaterials-public-models.s3.us-west-1.amazonaws.com/forcefields/"
_V2 = "M. Neumann et al., Orb: a fast, scalable neural network potential, arXiv:2410.22570 (2024)"
_V3 = "B. Rhodes et al., Orb-v3: atomistic simulation at scale, arXiv:2504.06231 (2025)"
_OMOL = "D. S. Levine et al., The Open Molecules 2025 (OMol25) dataset, arXiv:2505.08762 (2025)"
PROBE_SECONDS = 5.0
"""Longest wait for an answer from the server of the weights."""


@dataclass(frozen=True)
class OrbVariant:
    """One published model.

    Attributes
    ----------
    file : str
        Path of the weights on the publisher's server.
    conservative : bool
        Whether forces are the derivative of the energy; direct models predict them separately.
    max_neighbors : int
        Neighbours kept per atom within 6 Å.
    molecular : bool
        Trained on OMol25: takes charge and spin multiplicity.
    citation : str
    minimum : tuple of int
        First version of orb-models that has it.
    """

    file: str
    conservative: bool
    max_neighbors: int
    molecular: bool
    citation: str
    minimum: tuple[int, int] = (0, 5)

    @property
    def url(self) -> str:
        """Address of the weights."""
        return _HOST + self.file

    @property
    def elements(self) -> tuple[int, ...]:
        """Elements of the training data: 83 of OMol25, or the 89 of the Materials Project and Alexandria."""
        return tuple(range(1, 84)) if self.molecular else UNIVERSAL_ELEMENTS


def _make_v3(kind: str, neighbors: str, data: str) -> OrbVariant:
    return OrbVariant(
        f"orb-v3/orb-v3-{kind}-{neighbors}-{data}-20250404.ckpt",
        kind == "conservative",
        20 if neighbors == "20" else 120,
        False,
        _V3,
    )


DEFAULT = "orb-v3-conservative-inf-omat"
VARIANTS: dict[str, OrbVariant] = {
    f"orb-v3-{kind}-{neighbors}-{data}": _make_v3(kind, neighbors, data)
    for kind in ("conservative", "direct")
    for neighbors in ("inf", "20")
    for data in ("omat", "mpa")
}
for _kind in ("conservative", "direct"):
    VARIANTS[f"orb-v3-{_kind}-omol"] = OrbVariant(
        f"orb-v3-{_kind}-omol-20250820.ckpt", _kind == "conservative", 120, True, f"{_V3}; {_OMOL}"
    )
VARIANTS["orbmol-v2"] = OrbVariant(
    "orbmol-v2-teqabfhg-20260523.ckpt", True, 120, True, f"{_V3}; {_OMOL}", (0, 7)
)
for _name, _date in (
    ("orb-v2", "20241011"),
    ("orb-d3-v2", "20241011"),
    ("orb-d3-sm-v2", "20241011"),
    ("orb-d3-xs-v2", "20241011"),
    ("orb-mptraj-only-v2", "20241014"),
):
    VARIANTS[_name] = OrbVariant(f"{_name}-{_date}.ckpt", False, 20, False, _V2)


ALIASES = {f"orbmol-v1-{_kind}": f"orb-v3-{_kind}-omol" for _kind in ("conservative", "direct")}
"""Further names that orb-models has for some of them."""


def name_variant(given: str | None) -> str:
    """Key of :data:`VARIANTS` for a name of a model, with or without ``orb-``, or of the function that loads it.

    Raises
    ------
    UsageError
        There is no such model.
    """
    plain = (given or DEFAULT).lower().replace("_", "-")
    plain = ALIASES.get(plain, plain)
    for name in (plain, f"orb-{plain}"):
        if name in VARIANTS:
            return name
    return pick_variant("orb", given, tuple(VARIANTS), DEFAULT)


def describe_limits(variant: OrbVariant) -> tuple[str, ...]:
    """What a user must know before distilling a variant, in whole sentences."""
    notes = [
        "Orb's energy is the number of atoms times a function of a mean: it is not exactly extensive."
    ]
    if not variant.conservative:
        notes.append("Direct model: its forces are not the derivative of its energy.")
    if variant.max_neighbors < 120:
        notes.append(
            f"At most {variant.max_neighbors} neighbours per atom: energy and forces jump when neighbours swap places."
        )
    else:
        notes.append("'Unlimited' means at most 120 neighbours within 6 Å.")
    if variant.molecular:
        notes.append("Charge and spin multiplicity are inputs.")
    return tuple(notes)


def find_cached_weights(variant: OrbVariant) -> Path | None:
    """Newest copy in the cache that orb-models fills (``CACHED_PATH_CACHE_ROOT``), None if there is none."""
    root = os.environ.get("CACHED_PATH_CACHE_ROOT") or Path.home() / ".cache" / "cached_path"
    stem = hashlib.sha256(variant.url.encode()).hexdigest()
    found = [path for path in Path(root).glob(f"{stem}*") if path.suffix not in (".json", ".lock")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def find_weights(name: str, variant: OrbVariant) -> str:
    """A cached file, or the address if the server answers, for Orb's own loader to fetch.

    Raises
    ------
    MissingDependencyError
        Within seconds, if the weights are not cached and cannot be fetched.
    """
    cached = find_cached_weights(variant)
    if cached is not None:
        return str(cached)
    if is_offline():
        reason = "FASTFF_OFFLINE is set"
    elif (failure := _probe(variant.url)) is not None:
        reason = f"the server does not answer ({failure})"
    else:
        return variant.url
    raise MissingDependencyError(
        f"the weights of {name} are not on this machine and cannot be fetched: {reason}. On a machine with internet, "
        f"download {variant.url} (about 100 MB; no hash is published), copy it here, anywhere, and pass "
        f"--teacher-weights PATH."
    )


def _probe(url: str) -> str | None:
    """None if ``url`` answers in time, else why not. In a thread, since looking up a host name cannot be timed out."""
    outcome = [f"no answer in {PROBE_SECONDS:g} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                outcome[0] = ""
        except (URLError, OSError) as error:
            outcome[0] = str(getattr(error, "reason", error)) or type(error).__name__

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1.0)
    return outcome[0] or None
