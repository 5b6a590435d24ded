"""The process in which FeNNol and JAX live, apart from torch.

Here: a loop that answers requests on standard input with results on standard output. Not here: anything of fastff;
this file is run as a script by :mod:`fastff.teachers.fennol`, possibly under another Python, and imports NumPy, SciPy,
JAX and FeNNol only.

A message is eight bytes of length and an ``.npz`` archive without pickles, whose entry ``meta`` is JSON text. Energies
are converted to eV here; positions are in Å.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import sys
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, BinaryIO

import numpy as np

HARTREE_EV = 27.211386024367243
"""CODATA 2014, as in ASE and FeNNol."""

MOST_PROGRAMS = 32
"""Compiled programs kept at a time."""


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """One message, or None where the stream has ended."""
    header = stream.read(8)
    if len(header) < 8:
        return None
    (length,) = struct.unpack(">Q", header)
    data = stream.read(length)
    if len(data) < length:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    return json.loads(arrays.pop("meta").tobytes().decode()), arrays


def write_message(stream: BinaryIO, meta: dict[str, Any], **arrays: np.ndarray) -> None:
    """Write and flush one message."""
    buffer = io.BytesIO()
    entries: dict[str, Any] = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays}
    np.savez(buffer, **entries)
    data = buffer.getvalue()
    stream.write(struct.pack(">Q", len(data)))
    stream.write(data)
    stream.flush()


class Ensemble:
    """One or more FENNIX models that are evaluated on the same batches.

    Members that differ in their parameters only form a group: it is prepared once for each batch and evaluated by one
    compiled program, in which whatever does not depend on the parameters is computed once.
    """

    def __init__(self, paths: list[str], double: bool) -> None:
        import jax

        jax.config.update("jax_enable_x64", double)

        self.dtype = np.float64 if double else np.float32
        self.models = [load_model(path) for path in paths]
        self.groups: list[Group] = []
        for index, model in enumerate(self.models):
            fitting = [group for group in self.groups if is_alike(group.model, model)]
            if fitting:
                fitting[0].members.append(index)
            else:
                self.groups.append(Group(model, index))
        for group in self.groups:
            group.stack([self.models[index].variables for index in group.members])

    def describe(self) -> dict[str, Any]:
        """Versions, cut-off and architecture of the models."""
        import importlib.metadata

        import jax

        cutoffs = [
            graph["cutoff"]
            for model in self.models
            for graph in model._graphs_properties.values()
            if graph.get("cutoff") is not None
        ]
        return {
            "version": importlib.metadata.version("fennol"),
            "jax": jax.__version__,
            "platform": jax.default_backend(),
            "cutoff": float(max(cutoffs, default=0.0)),
            "ewald": any(
                getattr(layer, "k_space", False)
                for model in self.models
                for layer in model.preprocessing.layers
            ),
            "energy_units": [model.energy_unit for model in self.models],
            "modules": json.loads(json.dumps(self.models[0]._input_args["modules"], default=str)),
        }

    @property
    def n_compiled(self) -> int:
        """Programs compiled so far."""
        return sum(group.n_compiled for group in self.groups)

    def label(self, arrays: dict[str, np.ndarray], spread: bool = False) -> dict[str, np.ndarray]:
        """Energies (m, s) of the m models; the mean of forces (n, 3), virials (s, 3, 3) dE/dstrain and energies of
        atoms (n,); with ``spread`` the standard deviation of forces, ``force_spread`` (n, 3). In eV and Å.
        """
        n_atoms, n_systems, n_models = (
            len(arrays["species"]),
            len(arrays["natoms"]),
            len(self.models),
        )
        inputs = pad_systems(arrays, self.dtype)
        energies = np.empty((n_models, n_systems))
        totals: dict[str, np.ndarray] = {}
        forces = np.empty((n_models, n_atoms, 3)) if spread else None
        for group in self.groups:
            found = group.evaluate(inputs, spread)
            energies[group.members] = found.pop("energies")[:, :n_systems]
            if forces is not None:
                forces[group.members] = found.pop("member_forces")[:, :n_atoms]
            weight = len(group.members) / n_models
            for key, values in found.items():
                totals[key] = totals.get(key, 0.0) + weight * values
        results = {"energies": energies, "virials": totals["virials"][:n_systems]}
        results["forces"] = totals["forces"][:n_atoms]
        if all(group.has_atomic for group in self.groups):
            results["atomic"] = totals["atomic"][:n_atoms]
        if forces is not None:
            results["force_spread"] = forces.std(axis=0)
        return results


def load_model(path: str) -> Any:
    """One model; what FeNNol says of a broken file does not name it."""
    from fennol import FENNIX

    try:
        return FENNIX.load(path, use_atom_padding=True)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


def is_alike(first: Any, second: Any) -> bool:
    """Whether two models differ in the values of their parameters only."""
    import jax

    trees = [jax.tree_util.tree_flatten(model.variables) for model in (first, second)]
    shapes = [[(leaf.shape, leaf.dtype) for leaf in leaves] for leaves, _ in trees]
    return (
        first._input_args == second._input_args
        and first.energy_terms == second.energy_terms
        and trees[0][1] == trees[1][1]
        and shapes[0] == shapes[1]
    )


class Group:
    """Models that differ in their parameters only, with the programs compiled for them.

    Programs hold for one set of array sizes. Sizes come from coarse grids, and those of neighbor lists only grow for a
    given number of atoms, so that few programs are needed; the oldest go where there are too many.
    """

    def __init__(self, model: Any, index: int) -> None:
        self.model = model
        self.members = [index]
        self.n_compiled = 0
        self.has_atomic = False
        self._sizes: dict[tuple[bool, int], list[Any]] = {}
        self._programs: OrderedDict[Any, Any] = OrderedDict()

    def stack(self, variables: list[Any]) -> None:
        """Take the parameters of all members, with a leading axis over them."""
        import jax
        from fennol.utils.atomic_units import au

        self.factor = HARTREE_EV / au.get_multiplier(self.model.energy_unit)
        self.variables = jax.tree_util.tree_map(lambda *leaves: np.stack(leaves), *variables)
        self.variables = jax.device_put(self.variables)

    def evaluate(self, inputs: dict[str, Any], spread: bool) -> dict[str, np.ndarray]:
        """Energies (m, s) and means over the members, of padded inputs; eV and Å."""
        import jax

        prepared = jax.tree_util.tree_map(np.asarray, self.prepare(inputs))
        leaves, tree = jax.tree_util.tree_flatten(prepared)
        key = (spread, tree, tuple((leaf.shape, leaf.dtype.str) for leaf in leaves))
        if key not in self._programs:
            while len(self._programs) >= MOST_PROGRAMS:
                self._programs.popitem(last=False)
            # a function of its own, so that JAX forgets it together with the program
            program = jax.jit(lambda variables, data: self._compute(variables, data, spread))
            self._programs[key] = program.lower(self.variables, prepared).compile()
            self.n_compiled += 1
        self._programs.move_to_end(key)
        found = jax.device_get(self._programs[key](self.variables, prepared))
        self.has_atomic = "atomic" in found
        return {name: np.asarray(value, np.float64) * self.factor for name, value in found.items()}

    def _compute(self, variables: Any, data: dict[str, Any], spread: bool) -> dict[str, Any]:
        """What is compiled: energies of the members, and derivatives of their mean from one gradient."""
        import jax
        import jax.numpy as jnp

        eye = jnp.asarray(np.eye(3)[None].repeat(len(data["natoms"]), axis=0))

        def compute_energies(coordinates: Any, strain: Any) -> tuple[Any, Any]:
            moved = jnp.einsum("ni,nij->nj", coordinates, strain[data["batch_index"]])
            strained = {**data, "coordinates": moved}
            if "cells" in data:
                strained["cells"] = data["cells"] @ strain
                strained["reciprocal_cells"] = jnp.linalg.inv(strained["cells"])

            def compute_member(parameters: Any) -> tuple[Any, Any]:
                energy, output = self.model._total_energy_raw(parameters, strained)
                known = "atomic_energies" in output and "system_energies" not in output
                return energy, output["atomic_energies"] if known else None

            if len(self.members) == 1:
                single = jax.tree_util.tree_map(lambda leaf: leaf[0], variables)
                return jax.tree_util.tree_map(lambda leaf: leaf[None], compute_member(single))
            energies, atomic = jax.vmap(compute_member)(variables)
            return energies, atomic

        energies, pull, atomic = jax.vjp(compute_energies, data["coordinates"], eye, has_aux=True)
        slopes, virials = pull(jnp.full_like(energies, 1.0 / len(self.members)))
        found = {"energies": energies, "forces": -slopes, "virials": virials}
        if atomic is not None:
            found["atomic"] = atomic.mean(axis=0)
        if spread:
            chosen = jnp.eye(len(self.members), dtype=energies.dtype)
            spans = jnp.broadcast_to(chosen[:, :, None], (*chosen.shape, energies.shape[1]))
            found["member_forces"] = -jax.vmap(pull)(spans)[0]
        return found

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run the model's preprocessing with sizes from a grid; its neighbor lists are replaced by faster ones."""
        from fennol.models.preprocessing import GraphGenerator

        layers = self.model.preprocessing.layers
        sizes = self._sizes.setdefault(
            ("cells" in inputs, len(inputs["species"])), [layer.init() for layer in layers]
        )
        prepared = inputs
        for index, layer in enumerate(layers):
            own = isinstance(layer, GraphGenerator) and not layer.k_space
            run = partial(build_graph, layer) if own else layer
            state, output = run(sizes[index], prepared)
            if state != sizes[index]:
                sizes[index] = round_sizes(sizes[index], state)
                sizes[index], output = run(sizes[index], prepared)
            prepared = output
        return prepared


def round_up(number: float, smallest: int = 8) -> int:
    """The next size of a grid of quarter powers of two."""
    return math.ceil(smallest * 2.0 ** (math.ceil(4 * math.log2(max(number / smallest, 1.0))) / 4))


def round_sizes(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Any:
    """Sizes in the state of a preprocessing layer, those that have grown with some room and on the grid."""
    rounded = dict(new)
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping):
            rounded[key] = round_sizes(before or {}, value)
        elif isinstance(value, (int, np.integer)) and (before is None or value > before):
            rounded[key] = round_up(1.1 * value)
    return type(new)(rounded)  # type: ignore[call-arg]


def pad_systems(arrays: dict[str, np.ndarray], dtype: Any) -> dict[str, Any]:
    """Inputs of FeNNol's layers, with atoms and systems appended up to sizes of coarse grids.

    FeNNol tells arrays over atoms from arrays over systems by their length: numbers of atoms are even, of systems odd.
    """
    n_atoms, n_systems = len(arrays["species"]), len(arrays["natoms"])
    all_atoms = 16
    while all_atoms < n_atoms:  # 16, 32, 64, 128, 192, 256, 384, 512 ...
        if all_atoms & (all_atoms - 1):  # between two powers of two
            all_atoms = all_atoms * 4 // 3
        else:
            all_atoms = all_atoms * 2 if all_atoms < 128 else all_atoms * 3 // 2
    all_systems = 1 + 4 ** math.ceil(math.log(max(n_systems, 2), 4) - 1e-9)
    more_atoms, more_systems = all_atoms - n_atoms, all_systems - n_systems
    batch_index = np.repeat(np.arange(n_systems), arrays["natoms"])

    def pad(values: np.ndarray, count: int, fill: float, kind: Any) -> np.ndarray:
        widths = [(0, count)] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, widths, constant_values=fill).astype(kind)

    inputs: dict[str, Any] = {
        "species": pad(arrays["species"], more_atoms, -1, np.int32),
        "coordinates": pad(arrays["positions"], more_atoms, 0.0, dtype),
        "natoms": pad(arrays["natoms"], more_systems, 0, np.int32),
        "batch_index": pad(batch_index, more_atoms, all_systems - 1, np.int32),
        "total_charge": pad(arrays["charges"], more_systems, 0, np.int32),
        "true_atoms": np.arange(all_atoms) < n_atoms,
        "true_sys": np.arange(all_systems) < n_systems,
    }
    if "cells" in arrays:
        # a large cell would have hundreds of thousands of wave vectors in models with Ewald sums
        empty = np.broadcast_to(arrays["cells"][0], (more_systems, 3, 3))
        cells = np.concatenate([arrays["cells"], empty])
        inputs["cells"] = cells.astype(dtype)
        inputs["reciprocal_cells"] = np.linalg.inv(cells).astype(dtype)
    return inputs


def build_graph(layer: Any, state: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a ``GraphGenerator`` of FeNNol adds to the inputs, in its order: pairs, then pairs the other way round."""
    first, second, shifts, squares = find_pairs(inputs, layer.cutoff)
    other = first != second  # an atom and its own image occur both ways already
    counts = {"npairs": len(first), "npairs_noself": int(other.sum())}
    sizes = {key: max(count, state.get(key, 1)) for key, count in counts.items()}
    n_atoms = len(inputs["species"])

    def join(values: np.ndarray, others: np.ndarray, fill: float) -> np.ndarray:
        joined = np.full(
            (sizes["npairs"] + sizes["npairs_noself"], *values.shape[1:]), fill, values.dtype
        )
        joined[: len(values)] = values
        joined[sizes["npairs"] : sizes["npairs"] + len(others)] = others
        return joined

    graph = {
        **inputs.get(layer.graph_key, {}),
        "edge_src": join(first, second[other], n_atoms),
        "edge_dst": join(second, first[other], n_atoms),
        "d12": join(squares, squares[other], layer.cutoff**2),
        "overflow": False,
        "pbc_shifts": None if shifts is None else join(shifts, -shifts[other], 0),
    }
    return type(state)({**state, **sizes}), {**inputs, layer.graph_key: graph}


def find_pairs(
    inputs: dict[str, Any], cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Pairs within a cut-off, each once: both atoms, shifts of cells (or None), squared distances (Å^2).

    All systems are searched at once, set apart from each other along x.
    """
    from scipy.spatial import cKDTree

    cells = inputs.get("cells")
    real, images, owners, moves = [], [], [], []
    wraps = np.zeros((len(inputs["species"]), 3), np.int32)
    start, edge = 0, 0.0
    for index, count in enumerate(inputs["natoms"]):
        if count == 0:
            continue
        positions = inputs["coordinates"][start : start + count].astype(np.float64)
        owner, move, image = np.arange(count), np.zeros((count, 3), np.int32), positions
        if cells is not None:
            cell = cells[index].astype(np.float64)
            inverse = np.linalg.inv(cell)
            fractions = positions @ inverse
            wrap = -np.floor(fractions).astype(np.int32)
            wraps[start : start + count] = wrap
            fractions = fractions + wrap
            positions = fractions @ cell
            reach = cutoff * np.linalg.norm(inverse, axis=0) + 1e-9
            spans = [np.arange(-n, n + 1) for n in np.ceil(reach).astype(int)]
            grid = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 1, 3)
            low, high = fractions.min(axis=0) - reach, fractions.max(axis=0) + reach
            all_images = fractions + grid
            near = ((all_images >= low) & (all_images <= high)).all(axis=-1)
            cell_index, owner = np.nonzero(near)
            move, image = grid[cell_index, 0].astype(np.int32), all_images[near] @ cell
        offset = np.array([edge + 2 * cutoff - image[:, 0].min(), 0.0, 0.0])
        edge = image[:, 0].max() + offset[0]
        real.append(positions + offset)
        images.append(image + offset)
        owners.append(owner + start)
        moves.append(move)
        start += count
    owner, move = np.concatenate(owners), np.concatenate(moves)
    near = cKDTree(np.concatenate(real)).sparse_distance_matrix(
        cKDTree(np.concatenate(images)), cutoff, output_type="ndarray"
    )
    first, second = near["i"], owner[near["j"]]
    kept = (first < second) | ((first == second) & move[near["j"]].any(axis=1))
    first, second, move = first[kept], second[kept], move[near["j"][kept]]
    shifts = None if cells is None else move + wraps[second] - wraps[first]
    return first.astype(np.int32), second.astype(np.int32), shifts, near["v"][kept] ** 2


def main() -> None:
    """Answer requests until standard input closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever FeNNol or JAX print goes to standard error
    requests = sys.stdin.buffer
    ensemble: Ensemble | None = None
    while (message := read_message(requests)) is not None:
        meta, arrays = message
        try:
            if meta["task"] == "load":
                ensemble = Ensemble(meta["paths"], meta["double"])
                write_message(answers, {"ok": True, **ensemble.describe()})
            else:
                assert ensemble is not None
                found = ensemble.label(arrays, meta.get("spread", False))
                write_message(answers, {"ok": True, "compiled": ensemble.n_compiled}, **found)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            write_message(answers, {"ok": False, "kind": type(error).__name__, "error": str(error)})


if __name__ == "__main__":
    main()
