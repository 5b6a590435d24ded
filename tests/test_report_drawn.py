"""What the figures of a report show, read back from their axes: data, sides, units and labels."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.colors
import numpy as np
import pytest

from fastff.report import figures, physics_figures, speed_figures, trust_figures
from fastff.report.calibration import CalibrationData, GradeBin
from fastff.report.figures import OTHERS, STUDENT, TEACHER
from fastff.report.noise import NoiseFloor
from fastff.report.physics.record import (
    DiffusionCurve,
    DiffusionItem,
    DimerCurve,
    DimerItem,
    EnergyTrace,
    EosItem,
    NveItem,
    PhononItem,
    RdfCurve,
    RdfItem,
)
from fastff.report.plotdata import CoverageData, Density, ForceBin
from fastff.report.speed import SpeedCurve, SpeedPoint, summarize
from fastff.report.tables import PATHS
from fastff.units import EV_PER_A3_TO_GPA

NOISE = NoiseFloor(
    rotation_force=0.002, rotation_energy=0.0, jitter_force=0.001, batch_force=0.0, batch_energy=0.0,
    jitter=1e-3, n_frames=2,
)  # fmt: skip


@pytest.fixture
def look(monkeypatch):
    """Draw with a function of the report and return the axes instead of SVG."""
    drawn = []

    def keep(drawing):
        drawn.append(drawing)
        return ""

    monkeypatch.setattr(figures.Drawing, "render", keep)

    def draw(function, *arguments):
        function(*arguments)
        return drawn[-1].axes

    return draw


def read_lines(axes):
    """x and y of every line that has a label, by label."""
    return {
        line.get_label(): line.get_xydata().T
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def read_colors(axes):
    return {line.get_label(): matplotlib.colors.to_hex(line.get_color()) for line in axes.lines}


def read_levels(axes):
    """Heights of horizontal lines and places of vertical ones, whatever their label."""
    lines = [np.asarray(line.get_xydata()) for line in axes.lines if len(line.get_xydata()) == 2]
    across = [xy[0, 1] for xy in lines if xy[0, 1] == xy[1, 1]]
    upright = [xy[0, 0] for xy in lines if xy[0, 0] == xy[1, 0]]
    return across, upright


def expect(line, x, y):
    np.testing.assert_allclose(line[0], x)
    np.testing.assert_allclose(line[1], y)


def expect_sides(axes, teacher="teacher", student="student"):
    """The two labels stand on lines of the colours that the whole report gives to teacher and student."""
    colors = read_colors(axes)
    assert colors[teacher] == TEACHER
    assert colors[student] == STUDENT


# Accuracy ------------------------------------------------------------------------------------------------------------


def test_force_parity(look):
    density = Density(low=-2.0, high=2.0, n_bins=4, cells=((0, 1, 7), (3, 2, 5)), outside=0)
    axes = look(figures.draw_force_parity, density)
    mesh = axes.collections[0]
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(corners[:, 0, 1], [-2, -1, 0, 1, 2])
    counts = np.ma.filled(mesh.get_array(), np.nan).reshape(4, 4)
    assert {(x, y): n for (y, x), n in np.ndenumerate(counts) if n > 0} == {(0, 1): 7, (3, 2): 5}
    assert axes.get_xlabel() == "teacher force (eV/Å)"
    assert axes.get_ylabel() == "student force (eV/Å)"


def test_energy_parity(look):
    rows = ((0, 0.001, 0.004), (0, -0.002, -0.006), (1, 0.003, 0.010))
    axes = look(figures.draw_energy_parity, rows, ("Cu", "Au"))
    lines = read_lines(axes)
    expect(lines["Cu"], [1, -2], [4, -6])
    expect(lines["Au"], [3], [10])
    assert axes.get_xlabel() == "teacher energy less mean (meV/atom)"
    assert axes.get_ylabel() == "student energy less mean (meV/atom)"


def test_stress_parity(look):
    rows = [(0.01, 0.03), (-0.02, 0.05)]
    axes = look(figures.draw_stress_parity, rows)
    dots = axes.collections[0].get_offsets()
    expected = sorted(map(tuple, EV_PER_A3_TO_GPA * np.array(rows)))
    np.testing.assert_allclose(sorted(map(tuple, dots)), expected)
    assert axes.get_xlabel() == "teacher stress (GPa)"
    assert axes.get_ylabel() == "student stress (GPa)"


def test_force_error(look):
    bins = [
        ForceBin(count=9, force_rms=0.5, error_rms=0.05, error_median=0.03, error_q90=0.08),
        ForceBin(count=9, force_rms=1.5, error_rms=0.07, error_median=0.04, error_q90=0.11),
    ]
    axes = look(figures.draw_force_error, bins, NOISE, 2.0)
    lines = read_lines(axes)
    expect(lines["median"], [0.5, 1.5], [0.03, 0.04])
    expect(lines["RMS of the bin"], [0.5, 1.5], [0.05, 0.07])
    band = axes.collections[0].get_paths()[0].vertices
    assert {(0.5, 0.03), (1.5, 0.04), (0.5, 0.08), (1.5, 0.11)} <= set(map(tuple, band))
    # the floor is a share of components, the plot shows vectors
    assert read_levels(axes)[0] == pytest.approx([0.002 * 2.0 * np.sqrt(3.0)])
    assert axes.get_xlabel() == "|F| of the teacher (eV/Å)"
    assert axes.get_ylabel() == "|ΔF| (eV/Å)"
    assert axes.get_yscale() == "log"


def test_a_noise_floor_far_below_the_errors_is_said_and_not_drawn(look):
    bins = [ForceBin(count=9, force_rms=0.5, error_rms=0.05, error_median=0.03, error_q90=0.08)] * 2
    for share, drawn in ((1e-3, True), (5e-4, False), (0.0, False)):
        noise = NOISE.model_copy(
            update={"rotation_force": share, "jitter_force": share, "batch_force": share}
        )
        floor = noise.force * 2.0 * np.sqrt(3.0)
        axes = look(figures.draw_force_error, bins, noise, 2.0)
        (words,) = [text.get_text() for text in axes.texts]
        across, _ = read_levels(axes)
        assert (floor in [pytest.approx(level) for level in across]) == drawn
        assert words == "teacher's noise floor" + (
            "" if drawn else f": {floor:.1g} eV/Å, below the axis"
        )
        low, high = axes.get_ylim()
        assert low < 0.03
        assert high > 0.08
        if not drawn:
            assert high / low < 100.0


def test_learning_curve(look):
    curve = [
        {"step": k, "force_accuracy": 0.9 + 0.01 * k, "energy_accuracy": 0.8 + 0.01 * k,
         "stress_accuracy": 0.7 + 0.01 * k, "accuracy": 0.6 + 0.01 * k, "force_mae": 0.1}
        for k in (1, 2)
    ]  # fmt: skip
    axes = look(figures.draw_learning_curve, curve)
    lines = read_lines(axes)
    for label, base in (("force", 90), ("energy", 80), ("stress", 70), ("overall", 60)):
        expect(lines[label], [1, 2], [base + 1, base + 2])
    assert axes.get_xlabel() == "training step"
    assert axes.get_ylabel() == "validation accuracy (%)"


def test_coverage(look):
    coverage = CoverageData(
        force_edges=(0.0, 1.0, 3.0), force_counts=(5, 2), distance_edges=(0.0, 2.0, 4.0),
        distance_counts=(2, 8), shortest_distance=2.5, volume_per_atom=None, element_counts={"Cu": 7},
    )  # fmt: skip
    axes = look(figures.draw_coverage, coverage)
    steps = next(
        line.get_xydata().T
        for line in axes.lines
        if len(line.get_xydata()) > 2 or line.get_drawstyle() != "default"
    )
    expect(steps, [1, 3], [1, 4 / 9])  # 2 over 1 Å² and 8 over 9 Å², the larger one scaled to 1
    assert read_levels(axes)[1] == [2.5]
    assert axes.get_xlabel() == "pair distance (Å)"
    axes = look(figures.draw_force_histogram, coverage)
    drawn = axes.patches[0].get_data()
    assert tuple(drawn.values) == (5, 2)
    assert tuple(drawn.edges) == (0.0, 1.0, 3.0)
    assert axes.get_xlabel() == "|F| of the teacher (eV/Å)"
    assert axes.get_ylabel() == "atoms"


# Speed ---------------------------------------------------------------------------------------------------------------


def make_curve(role, label, factor, mode="ase-call"):
    points = [
        summarize(n, "Cu", [0.8 * factor * n, factor * n, 1.4 * factor * n], int(factor * n * 2**20))
        for n in (10, 100)
    ]  # fmt: skip
    if role == "teacher":
        points.append(SpeedPoint(n_atoms=1000, formula="Cu", status="out-of-memory", reason="full"))
    return SpeedCurve(
        role=role, label=label, mode=mode, includes="", device="cpu", threads=1, identity={},
        points=tuple(points),
    )  # fmt: skip


CURVES = [
    make_curve("student", "fastff m1", 1.0),
    make_curve("teacher", "big", 50.0),
    make_curve("other", "third", 7.0),
]


def read_legend(axes):
    """Colour of every entry of the legend below the axes."""
    (legend,) = axes.figure.legends
    pairs = zip(legend.get_texts(), legend.legend_handles, strict=True)
    return {text.get_text(): matplotlib.colors.to_hex(line.get_color()) for text, line in pairs}


def test_speed(look):
    axes = look(speed_figures.draw_speed, CURVES)
    colors = {"fastff m1": STUDENT, "big": TEACHER, "third": OTHERS[0]}
    lines = {matplotlib.colors.to_hex(line.get_color()): line.get_xydata().T for line in axes.lines}
    for label, factor in (("fastff m1", 1.0), ("big", 50.0), ("third", 7.0)):
        expect(lines[colors[label]], [10, 100], [1e4 * factor, 1e5 * factor])
        assert read_legend(axes)[label] == colors[label]
    bands = [collection.get_paths()[0].vertices for collection in axes.collections]
    for band, curve in zip(bands, CURVES, strict=True):
        for point in curve.points[:2]:
            heights = band[band[:, 0] == point.n_atoms, 1]
            assert heights.min() == pytest.approx(1e3 * point.q10)
            assert heights.max() == pytest.approx(1e3 * point.q90)
    words = {text.get_text(): text for text in axes.texts}
    assert words["out of memory"].xy[0] == 1000
    assert words["out of memory"].get_color() == TEACHER
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("atoms", "time (ms)")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_memory(look):
    axes = look(speed_figures.draw_memory, CURVES)
    lines = read_lines(axes)
    for label, factor in (("fastff m1", 1.0), ("big", 50.0), ("third", 7.0)):
        expect(lines[label], [10, 100], [10 * factor, 100 * factor])
    expect_sides(axes, "big", "fastff m1")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("atoms", "peak memory (MiB)")


def test_speed_in_every_mode(look):
    modes = ("model", "model-list", "ase-call", "md-loop", "ase-md")
    curves = [make_curve("student", "s", 1.0 + k, mode) for k, mode in enumerate(modes)]
    axes = look(speed_figures.draw_speed, curves)
    lines = {(line.get_marker(), line.get_linestyle()): line.get_xydata().T for line in axes.lines}
    (legend,) = axes.figure.legends
    pairs = zip(legend.get_texts(), legend.legend_handles, strict=True)
    marks = {text.get_text(): (h.get_marker(), h.get_linestyle()) for text, h in pairs}
    for k, mode in enumerate(modes):
        expect(lines[marks[PATHS[mode]]], [10, 100], [1e4 * (1 + k), 1e5 * (1 + k)])


# Trust ---------------------------------------------------------------------------------------------------------------


def test_panel(look):
    def judge(name, force, limiting, overall):
        accuracy = {"force": force, "limiting": limiting, "overall": overall}
        return SimpleNamespace(name=name, accuracy=accuracy)

    comparisons = [
        judge("held-out frames", 0.97, "force", 0.97),
        judge("strained", 0.8, "energy", 0.6),
    ]
    other = SimpleNamespace(name="third", comparisons=[judge("strained", 0.5, "stress", -0.2)])
    axes = look(trust_figures.draw_panel, comparisons, [other], NOISE, 0.95)
    names = [label.get_text() for label in axes.get_yticklabels()]
    bars = {}
    for bar in axes.patches:
        row = round(bar.get_y() + 0.5 * bar.get_height())
        color = matplotlib.colors.to_hex(bar.get_facecolor())
        bars[names[row], color] = bar.get_width()
    assert bars == pytest.approx(
        {
            ("held-out frames", STUDENT): 97.0,
            ("strained", STUDENT): 80.0,
            ("strained", OTHERS[0]): 50.0,
        }
    )
    lines = read_lines(axes)
    assert lines["noise floor"][0] == pytest.approx([99.8, 99.8])
    assert lines["required"][0] == pytest.approx([95.0, 95.0])
    assert read_colors(axes)["noise floor"] == TEACHER
    words = {text.get_text() for text in axes.texts}
    assert words == {"97.0 %", "80.0 %, energy 60.0 %", "50.0 %, stress -20.0 %"}
    # the lowest of all quantities where that is not the forces', at its side's bar
    bar, other_bar = (
        b for b in axes.patches if names[round(b.get_y() + b.get_height() / 2)] == "strained"
    )
    places = [b.get_y() + 0.5 * b.get_height() for b in (bar, other_bar)]
    expect(lines["lowest of force, energy, stress"], [60.0, 0.0], places)
    assert axes.get_xlabel() == "force accuracy (bars), lowest (marks), %"
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


CALIBRATION = CalibrationData(
    names=("held-out frames", "strained"),
    energy=((0, 0.001, -0.003), (0, 0.002, 0.005), (1, 0.004, 0.007)),
    within=(0.0, 0.0),
    grades=(
        GradeBin(count=3, grade=0.5, force_rmse=0.02),
        GradeBin(count=3, grade=1.5, force_rmse=0.09),
    ),
    beyond=(0.0, 0.5),
)


def test_calibration(look):
    axes = look(trust_figures.draw_calibration, CALIBRATION)
    lines = read_lines(axes)
    expect(lines["held-out frames"], [1, 2], [3, 5])
    expect(lines["strained"], [4], [7])
    diagonals = [line.get_xydata() for line in axes.lines if line.get_label().startswith("_")]
    assert sorted(float(xy[0, 1] / xy[0, 0]) for xy in diagonals) == pytest.approx([1.0, 2.0])
    assert axes.get_xlabel() == "predicted standard deviation (meV/atom)"
    assert axes.get_ylabel() == "|energy error| (meV/atom)"


def test_grades(look):
    axes = look(trust_figures.draw_grades, CALIBRATION)
    expect(axes.lines[0].get_xydata().T, [0.5, 1.5], [0.02, 0.09])
    assert 1.0 in read_levels(axes)[1]
    assert axes.get_xlabel() == "extrapolation grade of the atom"
    assert axes.get_ylabel() == "RMS force error (eV/Å)"


# Physical properties -------------------------------------------------------------------------------------------------

TEXT = {"title": "", "description": ""}


def test_eos(look):
    item = EosItem(**TEXT, volumes=(10, 11, 12), teacher=(0.1, 0.0, 0.2), student=(0.3, 0.0, 0.4))
    axes = look(physics_figures.draw_eos, item)
    lines = read_lines(axes)
    expect(lines["teacher"], [10, 11, 12], [100, 0, 200])
    expect(lines["student"], [10, 11, 12], [300, 0, 400])
    expect_sides(axes)
    assert axes.get_xlabel() == "volume (Å³/atom)"
    assert axes.get_ylabel() == "energy less lowest (meV/atom)"


def test_phonons(look):
    item = PhononItem(
        **TEXT, path=(0.0, 0.5, 1.0), marks=((0.0, "G"), (1.0, "X")),
        teacher=((0, 5), (2, 6), (4, 7)), student=((0, 8), (1, 9), (3, 10)),
    )  # fmt: skip
    axes = look(physics_figures.draw_phonons, item)
    drawn = {STUDENT: [], TEACHER: []}
    for line in axes.lines:
        color = matplotlib.colors.to_hex(line.get_color())
        if color in drawn:
            np.testing.assert_allclose(line.get_xdata(), [0.0, 0.5, 1.0])
            drawn[color].append(line.get_ydata().tolist())
    assert drawn == {TEACHER: [[0, 2, 4], [5, 6, 7]], STUDENT: [[0, 1, 3], [8, 9, 10]]}
    expect_sides(axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["G", "X"]
    assert axes.get_ylabel() == "frequency (THz)"


def test_phonons_are_not_joined_across_a_break_of_the_path(look):
    """X|K are two points at the same place; W is too near to U for a label of its own."""
    item = PhononItem(
        **TEXT, path=(0.0, 0.5, 0.5, 0.98, 1.0),
        marks=((0.0, "Γ"), (0.5, "X"), (0.5, "K"), (0.98, "U"), (1.0, "W")),
        teacher=((0,), (2,), (7,), (5,), (4,)), student=((0,), (3,), (8,), (6,), (5,)),
    )  # fmt: skip
    axes = look(physics_figures.draw_phonons, item)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Γ", "X|K", "U"]
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(lines) == 2
    for line in lines:
        np.testing.assert_array_equal(line.get_xdata(), [0.0, 0.5, np.nan, 0.5, 0.98, 1.0])
    np.testing.assert_array_equal(lines[0].get_ydata(), [0, 2, np.nan, 7, 5, 4])


@pytest.mark.parametrize("n_pairs", [1, 2])
def test_dimers(look, n_pairs):
    pairs = ("Cu-Cu", "Cu-Au")[:n_pairs]
    curves = tuple(
        DimerCurve(pair=pair, distances=(2, 3), teacher=(-1.0 - k, 0), student=(-4.0 - k, 0))
        for k, pair in enumerate(pairs)
    )
    axes = look(physics_figures.draw_dimers, DimerItem(**TEXT, curves=curves))
    lines = read_lines(axes)
    for k, pair in enumerate(pairs):
        expect(lines[f"{pair} teacher"], [2, 3], [-1.0 - k, 0])
        expect(lines[f"{pair} student"], [2, 3], [-4.0 - k, 0])
    if n_pairs == 1:
        expect_sides(axes, "Cu-Cu teacher", "Cu-Cu student")
    styles = {line.get_label(): line.get_linestyle() for line in axes.lines}
    assert {style for label, style in styles.items() if label.endswith("teacher")} == {"-"}
    assert {style for label, style in styles.items() if label.endswith("student")} == {"--"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distance (Å)", "energy (eV)")


def test_rdf(look):
    curve = RdfCurve(
        pair="Cu-Cu", radii=(2, 3), teacher=(1.0, 2.0), teacher_error=(0.1, 0.1),
        student=(1.5, 1.8), student_error=(0.2, 0.3),
    )  # fmt: skip
    item = RdfItem(**TEXT, temperature=300, n_blocks=4, curves=(curve,))
    axes = look(physics_figures.draw_rdf, item)
    lines = read_lines(axes)
    expect(lines["teacher"], [2, 3], [1.0, 2.0])
    expect(lines["student"], [2, 3], [1.5, 1.8])
    expect_sides(axes)
    for band, (low, high) in zip(axes.collections, ((0.8, 1.2), (1.1, 1.9)), strict=True):
        vertices = band.get_paths()[0].vertices
        heights = vertices[vertices[:, 0] == 2, 1]
        assert (heights.min(), heights.max()) == pytest.approx((low, high))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distance (Å)", "g(r)")


def test_rdf_of_every_pair_has_a_scale_of_its_own(look):
    """The bond of a molecule is no reason for other pairs, nor for later peaks of the same, to be flat lines."""
    curves = [
        RdfCurve(
            pair=pair, radii=(1, 2, 3), teacher=None, teacher_error=None, student=(0.0, peak, 1.0),
            student_error=(0.0, 0.1, 0.1),
        )
        for pair, peak in (("H-H", 2.5), ("H-O", 25.0), ("O-O", 3.0))
    ]  # fmt: skip
    item = RdfItem(**TEXT, temperature=300, n_blocks=4, curves=tuple(curves))
    figure = look(physics_figures.draw_rdf, item).figure
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [
        ["H-H"],
        ["H-O"],
        ["O-O"],
    ]
    for axes, curve in zip(figure.axes, curves, strict=True):
        expect(read_lines(axes)["student"], [1, 2, 3], curve.student)
        shown = 1.0 if curve.pair == "H-O" else max(curve.student)
        assert 0.6 < shown / axes.get_ylim()[1] <= 1.0
        assert axes.get_ylabel() == "g(r)"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["student"]
    ((_, caption),) = physics_figures.draw_item(item)
    assert caption.endswith(
        "bands are two standard errors; peaks above the axis: H-O, 25.0 (student)."
    )


def test_diffusion(look):
    curve = DiffusionCurve(
        element="Cu", times=(0, 1), teacher=(0, 2), student=(0, 3), teacher_blocks=(), student_blocks=()
    )  # fmt: skip
    item = DiffusionItem(**TEXT, temperature=900, curves=(curve,))
    axes = look(physics_figures.draw_diffusion, item)
    lines = read_lines(axes)
    expect(lines["Cu teacher"], [0, 1], [0, 2])
    expect(lines["Cu student"], [0, 1], [0, 3])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (ps)", "mean square displacement (Å²)")


def test_nve(look):
    item = NveItem(
        **TEXT, temperature=300, time_step=2.0, teacher=EnergyTrace(times=(0, 1), energies=(0, 0.2)),
        student=EnergyTrace(times=(0, 2), energies=(0, 0.5)),
    )  # fmt: skip
    axes = look(physics_figures.draw_nve, item)
    lines = read_lines(axes)
    expect(lines["teacher"], [0, 1], [0, 0.2])
    expect(lines["student"], [0, 2], [0, 0.5])
    expect_sides(axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (ps)", "energy less start (meV/atom)")
