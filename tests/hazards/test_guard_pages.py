# SPDX-License-Identifier: Apache-2.0
"""No access outside the tensors: every one of them ends, or begins, at an unreadable page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# A process of its own: an access outside ends it. It prints the case that it is at.
SCRIPT = """
import ctypes, itertools, mmap, sys
sys.path.insert(0, sys.argv[1])
import torch
import gvr_topk
from generators import make_hint, make_rows
from gvr_topk.testing import tuning
from oracle import assert_exact, exact_answer

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)


class Fenced:
    def __init__(self, pages):
        self.memory = mmap.mmap(-1, (pages + 2) * PAGE)
        self.size = pages * PAGE
        first = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for fence in (first, first + PAGE + self.size):
            if libc.mprotect(ctypes.c_void_p(fence), PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def tensor(self, values, at_end):
        offset = PAGE + (self.size - values.nbytes if at_end else 0)
        flat = torch.frombuffer(
            self.memory, dtype=values.dtype, count=values.numel(), offset=offset
        )
        return flat.view(values.shape).copy_(values)


fenced = [Fenced(8) for _ in range(4)]
lengths = [*range(1, 140), 255, 256, 257, 511, 513, 1023, 1025, 2047, 2049]
dtypes = [torch.float32, torch.bfloat16, torch.float16]
algorithms = sys.argv[2:]
for n, dtype, at_end in itertools.product(lengths, dtypes, (True, False)):
    k = max(1, n // 3)
    scores = make_rows("quantised_33", 2, n, k, dtype=dtype)
    answer = exact_answer(scores, k)
    placed = fenced[0].tensor(scores, at_end)
    hint = fenced[1].tensor(make_hint("exact", scores, k), at_end)
    values = fenced[2].tensor(torch.zeros(2, k, dtype=dtype), at_end)
    indices = fenced[3].tensor(torch.zeros(2, k, dtype=torch.int32), at_end)
    for algorithm in algorithms:
        for overrides in ({}, {"staging": 1, "chunk": 32, "ctas_per_row": 2}):
            print(f"\\r{algorithm}, n {n}, {dtype}, at end {at_end}, {overrides}", end="        ")
            with tuning(**overrides):
                gvr_topk.topk(placed, k, hint=hint, algorithm=algorithm, out=(values, indices))
            assert_exact(answer, indices, values)
"""


@pytest.mark.parametrize("algorithm", ["gvr", "resident", "stream", "radix"])
def test_nothing_outside_the_tensors_is_touched(algorithm: str) -> None:
    command = [sys.executable, "-u", "-c", SCRIPT, str(TESTS), algorithm]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    last = done.stdout.split("\r")[-1].strip()
    assert done.returncode == 0, f"exit {done.returncode} at {last}: {done.stderr[-2000:]}"
