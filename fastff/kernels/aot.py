"""Ahead-of-time compilation of a Triton kernel for a GPU that need not be present.

Here: compile for a target and read registers, spills and shared memory from the result. Not here: launching.
Used by the tests to bound what every kernel costs on machines without a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastff.errors import UsageError

TARGETS: Final[Mapping[str, tuple[str, int | str, int]]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}
"""Back end, architecture and warp size of the targets every kernel is compiled for."""


@dataclass(frozen=True)
class CompileReport:
    """What a compiled kernel needs.

    Attributes
    ----------
    target : str
    registers : int
        Per thread (vector registers on AMD).
    spills : int
        Bytes of local memory per thread on NVIDIA, where spilled registers go (Triton kernels put nothing else there,
        except the slow path of some library functions); spilled vector registers on AMD.
    shared : int
        Bytes of shared memory per program.
    """

    target: str
    registers: int
    spills: int
    shared: int


def compile_ahead(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    target: str,
    *,
    num_warps: int = 4,
    num_stages: int = 1,
) -> CompileReport:
    """Compile ``kernel`` for ``target`` and report its resources; needs no GPU.

    Parameters
    ----------
    kernel : triton JITFunction
        Not an interpreted one: ``TRITON_INTERPRET`` must be unset when its module is imported.
    signature : mapping
        Type of every run-time argument by name, for example ``{"x": "*fp32", "n_rows": "i32"}``. Pointers are
        taken to be aligned to 16 bytes, as torch allocates them.
    constexprs : mapping
        Value of every ``tl.constexpr`` argument by name.
    target : {"sm_80", "sm_90", "gfx942"}
    num_warps, num_stages : int

    Raises
    ------
    UsageError
        Unknown target, interpreted kernel, or an argument that is in neither or both of the mappings.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}")
    if not isinstance(kernel, triton.JITFunction):
        raise UsageError(
            f"{kernel} is not a compilable kernel; unset TRITON_INTERPRET and start Python again"
        )
    names = list(kernel.arg_names)
    if set(signature) & set(constexprs) or set(signature) | set(constexprs) != set(names):
        raise UsageError(
            f"arguments {sorted(set(signature) | set(constexprs))} do not match those of "
            f"{kernel.__name__}: {names}"
        )
    types = {name: signature.get(name, "constexpr") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items()
        if kind.startswith("*")
    }
    source = ASTSource(kernel, types, constexprs=dict(constexprs), attrs=aligned)
    compiled = triton.compile(
        source,
        target=GPUTarget(*TARGETS[target]),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )
    shared = int(compiled.metadata.shared)
    if TARGETS[target][0] == "hip":
        return _read_amdgcn(target, compiled.asm["amdgcn"], shared)
    return _read_cubin(target, compiled.asm["cubin"], shared)


def _read_cubin(target: str, cubin: bytes, shared: int) -> CompileReport:
    """Read the resource report of machine code with the tool that ships with Triton."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        report = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return CompileReport(
        target=target,
        registers=_read_number(r"REG:(\d+)", report),
        spills=_read_number(r"STACK:(\d+)", report) + _read_number(r"LOCAL:(\d+)", report),
        shared=shared,
    )


def _read_amdgcn(target: str, assembly: str, shared: int) -> CompileReport:
    return CompileReport(
        target=target,
        registers=_read_number(r"\.vgpr_count:\s+(\d+)", assembly),
        spills=_read_number(r"\.vgpr_spill_count:\s+(\d+)", assembly),
        shared=shared,
    )


def _read_number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern!r} in the compiler's report:\n{text[-2000:]}")
    return int(match[1])
