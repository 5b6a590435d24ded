"""Which data the figures of a page are drawn from, and what captions, tiles and facts beside them say."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from producers import edit

from fastff.labels import Labels
from fastff.report import figures, html, speed_figures, trust_figures
from fastff.report.plotdata import compute_coverage, compute_parity
from fastff.report.verdict import format_bytes, format_share

FUNCTIONS = {
    figures: (
        "draw_force_parity", "draw_energy_parity", "draw_stress_parity", "draw_force_error",
        "draw_learning_curve", "draw_coverage", "draw_force_histogram",
    ),
    speed_figures: ("draw_speed", "draw_memory"),
    trust_figures: ("draw_panel", "draw_calibration", "draw_grades"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(whole_record: Any) -> Any:
    """A record with a size that was too slow and a tree with changes; arguments of every figure; the page."""

    def change(content: Any) -> None:
        content["provenance"] |= {"dirty": True, "commit": "0123abcd", "memory": 25 * 2**30}
        content["durations"]["speed"] = 61.0

    record = edit(whole_record, change, "measured")
    drawn: dict[str, tuple[Any, ...]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for module, names in FUNCTIONS.items():
            for name in names:
                patch.setattr(
                    module, name,
                    lambda *given, name=name: drawn.setdefault(name, given) and f"<svg>{name}</svg>",
                )  # fmt: skip
        page = html.render_report(record)
    return record, drawn, page


def read_captions(page: str) -> dict[str, str]:
    """Caption of every figure that was drawn by name."""
    found = re.findall(r"<svg>(\w+)</svg>\s*<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    return {name: unescape(caption) for name, caption in found}


def read_facts(page: str) -> dict[str, str]:
    found = re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page, re.DOTALL)
    return {unescape(name): unescape(re.sub(r"<.*?>", "", value)) for name, value in found}


def test_figures_are_of_the_frames_that_decide(shown: Any) -> None:
    record, drawn, _ = shown
    main, accuracy = record.main, record.main.read_accuracy()
    assert len(record.comparisons) > 1
    assert drawn["draw_force_parity"] == (main.parity.force,)
    assert drawn["draw_energy_parity"] == (main.parity.energy, main.parity.energy_groups)
    assert drawn["draw_stress_parity"] == (main.parity.stress,)
    assert record.teacher_noise != record.student_noise
    expected = (main.parity.force_bins, record.teacher_noise, accuracy.force_rms)
    assert drawn["draw_force_error"] == expected
    assert drawn["draw_coverage"] == drawn["draw_force_histogram"] == (main.coverage,)
    assert drawn["draw_learning_curve"] == (record.model.training["learning_curve"],)


def test_figures_of_speed_and_trust_have_all_they_compare(shown: Any) -> None:
    record, drawn, _ = shown
    assert drawn["draw_speed"] == (record.speed,)
    assert drawn["draw_memory"] == ([c for c in record.speed if c.mode == "ase-call"],)
    assert drawn["draw_panel"] == (
        record.comparisons, record.baselines, record.teacher_noise, record.verdict.required,
    )  # fmt: skip
    assert drawn["draw_calibration"] == drawn["draw_grades"] == (record.calibration,)


def test_captions_count_what_is_drawn(shown: Any) -> None:
    record, _, page = shown
    captions, parity = read_captions(page), record.main.parity
    counts = {
        "draw_force_parity": 3 * record.main.frames.n_atoms,
        "draw_energy_parity": record.main.frames.n_frames,
        "draw_stress_parity": 6 * record.main.frames.n_frames,
    }
    for name, count in counts.items():
        assert re.search(rf"\b{count}\b", captions[name]), captions[name]
    assert parity.n_stresses == 6 * record.main.frames.n_frames
    kinds = {c.memory_kind for c in record.speed if c.mode == "ase-call"}
    assert all(kind in captions["draw_memory"] for kind in kinds)


def test_captions_name_the_frames_that_are_counted(whole_record: Any) -> None:
    def draw(n_frames: int) -> list[str]:
        frames = whole_record.main.frames.model_copy(update={"n_frames": n_frames})
        main = whole_record.main.model_copy(
            update={"frames": frames, "name": "frames not trained on"}
        )
        record = whole_record.model_copy(update={"comparisons": (main,)})
        return [caption for _, caption in html._draw_data(record)][-2:]

    forces = "Forces in the frames not trained on."
    assert draw(24) == ["Pair distances in the frames not trained on.", forces]
    assert draw(30) == ["Pair distances in 24 of the 30 frames not trained on.", forces]


def test_bins_and_volumes_by_hand() -> None:
    """Sixteen bins of ten atoms, whose errors are 1 to 10 eV/Å; 64 Å³ for four atoms."""
    reference = np.zeros((16 * 10, 3))
    reference[:, 0] = np.repeat(np.arange(1.0, 17.0), 10)
    error = np.zeros_like(reference)
    error[:, 1] = np.tile(np.arange(1.0, 11.0), 16)
    atoms = bulk("Cu", cubic=True, a=4.0).repeat((4, 2, 5))
    labels = [Labels(0.0, f, None) for f in (reference, reference + error)]
    bins = compute_parity(labels[:1], labels[1:], [atoms]).force_bins
    assert [b.count for b in bins] == [10] * 16
    assert [b.force_rms for b in bins] == pytest.approx(np.arange(1.0, 17.0))
    for entry in bins:
        assert entry.error_median == pytest.approx(5.5)
        assert entry.error_q90 == pytest.approx(9.1)
        assert entry.error_rms == pytest.approx(np.sqrt(38.5))
    coverage = compute_coverage(labels[:1], [atoms])
    assert coverage.volume_per_atom == pytest.approx((16.0, 16.0))
    assert coverage.shortest_distance == pytest.approx(4.0 / np.sqrt(2.0))
    assert coverage.element_counts == {"Cu": 160}


def test_the_noise_floor_of_the_tiles_is_the_teachers(shown: Any) -> None:
    record, _, _ = shown
    tile = next(tile for tile in html._list_tiles(record) if tile[1] == "noise floor")
    assert tile[0] == format_share(record.teacher_noise.force)
    assert tile[0] != format_share(record.student_noise.force)


def test_facts_have_their_units(shown: Any) -> None:
    record, _, page = shown
    facts, p = read_facts(page), record.provenance
    assert f"cut-off {record.model.cutoff:g} Å" in facts["student"]
    assert f"{record.model.n_parameters} parameters" in facts["student"]
    assert facts["model SHA-256"] == record.model.sha256
    assert facts["frames SHA-256"] == record.main.frames.digest
    assert facts["record"] == record.digest
    number, unit = facts["volume"].split(" to ")[0].split()[0], facts["volume"].split()[-1]
    assert float(number) == pytest.approx(record.main.coverage.volume_per_atom[0], abs=1e-3)
    assert unit == "Å³/atom"
    assert facts["commit"] == "0123abcd with changes"
    assert facts["machine"] == f"{p.machine}, {format_bytes(25 * 2**30)}"
    assert facts["date"] == p.date
    assert "speed 61 s" in facts["durations"]
    for name, version in p.packages.items():
        assert f"{name} {version}" in facts["software"]


def test_what_is_missing_is_listed_with_its_reason(shown: Any) -> None:
    record, _, page = shown
    curve = next(c for c in record.speed if (c.role, c.mode) == ("teacher", "ase-call"))
    measured = [p for p in curve.points if p.status == "measured"]
    gone = measured[0].model_copy(update={"status": "too-slow", "reason": "it takes 9 s"})
    changed = curve.model_copy(update={"points": (gone,)})
    lines = html._list_skipped(record.model_copy(update={"speed": (changed,)}))
    assert lines == [f"{curve.label}, {gone.n_atoms} atoms, too slow: it takes 9 s"]
    skipped = [p for c in record.speed for p in c.points if p.status != "measured"]
    assert len(html._list_skipped(record)) <= len(skipped)
    assert all(p.reason in unescape(page) for p in skipped)
    assert np.all([p.reason for p in skipped])
