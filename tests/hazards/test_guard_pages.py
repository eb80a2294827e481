# SPDX-License-Identifier: Apache-2.0
"""No access outside the tensors: every one of them ends, or begins, at an unreadable page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]

# A process of its own: an access outside ends it. It prints the case that it is at. On the CPU
# resident is stream.
SCRIPT = """
import ctypes, itertools, mmap, sys
sys.path.insert(0, sys.argv[1])
import torch
import gvr_topk
from generators import make_hint, make_rows
from gvr_topk.testing import tuning
from oracle import assert_exact, exact_answer

PAGE = mmap.PAGESIZE
ALGORITHMS = ("gvr", "stream", "radix")
assert torch.backends.cpu.get_cpu_capability() == sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
ops = torch.ops.gvr


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


fenced = [Fenced(8) for _ in range(12)]


def serve(placed, k, algorithm, at_end, place):
    # What a server adds. The state holds any bits, and the page table covers half of the row.
    n = placed.shape[1]
    lengths, starts = torch.tensor([n, n // 2]), torch.tensor([0, n // 4], dtype=torch.int32)
    answer = exact_answer(placed, k, lengths=lengths.flip(0), starts=starts.flip(0))
    noise = torch.Generator().manual_seed(n)
    state = torch.randint(-(2**31), 2**31, (1, 2, 1, 4 + k), generator=noise)
    state[0, :, 0, 0] = k
    state[0, :, 0, 4::2] %= n  # every other hint is a position
    state = place(state.to(torch.int32))
    window = {
        "slots": place(torch.tensor([0, 1])),
        "lengths": place(lengths),
        "starts": place(starts),
        "algorithm": algorithm,
    }
    rows = place(torch.tensor([1, 0]))
    table = place(torch.arange(2 * max(1, n // 32), dtype=torch.int32).view(2, -1))
    mapped = {**window, "row_to_request": rows}
    paged = {"page_table": table, "page_size": 16, "offsets": place(torch.tensor([0, 5]))}
    assert_exact(answer, ops.step_difference(placed, state, 0, k, **mapped)[0])
    assert_exact(answer, ops.step_kv(placed, state, 0, k, **paged, **mapped)[1])
    answer = exact_answer(placed, k, lengths=lengths, starts=starts)
    values, indices, _ = ops.step_stats(placed, state, 0, k, **window)
    assert_exact(answer, indices, values)


# Every tail of the widest loop's 64 scores, and longer rows at its edges.
edges = [96, 128, 192, 256, 512, 1024, 2048]
lengths = [*range(1, 67), *(edge + d for edge in edges for d in (-1, 0, 1))]
dtypes = [torch.float32, torch.bfloat16, torch.float16]
for n, dtype, at_end in itertools.product(lengths, dtypes, (True, False)):
    k = 20 if n == 1 else max(1, n // 3)  # one score, hinted often enough for a vector
    unused = iter(fenced)
    place = lambda values: next(unused).tensor(values, at_end)
    scores = make_rows("quantised_33", 2, n, k, dtype=dtype)
    answer = exact_answer(scores, k)
    placed, values = place(scores), place(torch.zeros(2, k, dtype=dtype))
    indices = place(torch.zeros(2, k, dtype=torch.int32))
    exact, wild = (place(make_hint(name, scores, k)) for name in ("exact", "random_bits"))
    tight = {"staging": 1, "chunk": 32, "ctas_per_row": 2}
    for algorithm in ALGORITHMS:
        for overrides, hint in (({}, exact), (tight, wild)):
            print(f"\\r{algorithm}, n {n}, {dtype}, at end {at_end}, {overrides}", end="        ")
            with tuning(**overrides):
                gvr_topk.topk(placed, k, hint=hint, algorithm=algorithm, out=(values, indices))
            assert_exact(answer, indices, values)
    print(f"\\rserving, n {n}, {dtype}, at end {at_end}", end="        ")
    serve(placed, k, ALGORITHMS[n % 3], at_end, place)
"""

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nothing_outside_the_tensors_is_touched(capability: str) -> None:
    """By the instructions of this machine, and by those of lesser ones."""
    best = torch.backends.cpu.get_cpu_capability()
    if best not in CAPABILITIES or CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        pytest.skip(f"this machine has {best}")
    command = [sys.executable, "-u", "-c", SCRIPT, str(TESTS), capability]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability.lower()}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=TESTS.parent, env=environment
    )
    last = done.stdout.split("\r")[-1].strip()
    assert done.returncode == 0, f"exit {done.returncode} at {last}: {done.stderr[-2000:]}"
