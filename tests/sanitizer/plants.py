# SPDX-License-Identifier: Apache-2.0
"""One error for each tool to find: a tool that misses its own is not watching.

compute-sanitizer --tool racecheck python tests/sanitizer/plants.py racecheck
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import gvr_topk

RACE = """
extern "C" __global__ void planted(int* out) {
  __shared__ volatile int cells[256];
  cells[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = cells[threadIdx.x ^ 128];  // another warp's, and no barrier in between
}
"""
SYNC = """
extern "C" __global__ void planted(int* out) {
  if (threadIdx.x < 100) __syncthreads();  // the others never come
  out[threadIdx.x] = threadIdx.x;
}
"""


def memcheck() -> None:
    """Scores that say they are longer than their allocation."""
    owner = torch.zeros(1024, device="cuda")
    storage = torch._C._construct_storage_from_data_pointer(
        owner.data_ptr(), owner.device, 2 * owner.nbytes
    )
    scores = torch.empty(0, device="cuda").set_(storage, 0, (1, 1100))
    gvr_topk.topk_indices(scores, 10)


def initcheck() -> None:
    """Scores that nobody wrote."""
    gvr_topk.topk_indices(torch.empty(1, 5000, device="cuda"), 10)


def _launch(source: str) -> None:
    out = torch.zeros(256, dtype=torch.int32, device="cuda")
    torch.cuda._compile_kernel(source, "planted")((1, 1, 1), (256, 1, 1), (out,))


PLANTS = {
    "memcheck": memcheck,
    "initcheck": initcheck,
    "racecheck": lambda: _launch(RACE),
    "synccheck": lambda: _launch(SYNC),
}

if __name__ == "__main__":
    PLANTS[sys.argv[1]]()
    torch.cuda.synchronize()
