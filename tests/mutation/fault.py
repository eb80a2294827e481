# SPDX-License-Identifier: Apache-2.0
"""A small fault of the kernels: `old`, which must occur exactly once in its file, becomes `new`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    why: str
    device: str = "cpu"  # where it is looked for: "cpu", or "cuda" for what only a GPU shows
    tool: str | None = None  # the tool of compute-sanitizer that may notice what no result shows
    # What notices it where the C++ tests and the fuzzer cannot: asked first, the C++ tests never.
    test: str | None = None

    def runs_with(self, capability: str) -> bool:
        """Whether a machine of this torch.backends.cpu.get_cpu_capability() ever runs the code."""
        if "avx512" in self.file:
            return capability == "AVX512"
        return "avx2" not in self.file or capability in ("AVX2", "AVX512")
