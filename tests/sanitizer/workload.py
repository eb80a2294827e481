# SPDX-License-Identifier: Apache-2.0
"""A few small calls that together enter every kernel, path and continuation; each is checked.

    python tests/sanitizer/workload.py --device cuda
    python tests/sanitizer/workload.py --share 2/3 --only radix

Made to run under compute-sanitizer, where a launch takes up to a hundred times as long: all inputs
are made on the CPU and copied, so that hardly any kernel but the library's is launched, rows are
short, and what matters most comes first. After every call a line of JSON says how many were
checked, so that a run which is cut off says how far it came.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import gvr_topk
from gvr_topk.fuzz.case import Case, check
from gvr_topk.fuzz.hints import make_hint
from gvr_topk.fuzz.oracle import assert_exact, exact_answer
from gvr_topk.fuzz.rows import make_rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Ties, plateaus, NaN, and rows whose every score overflows a staging area.
KINDS = ("quantised_33", "relu_90_percent_zero", "constant", "more_than_k_nan", "ascending")
SHARED = ("resident", "stream", "gvr")  # families whose CTAs share a row
FAMILIES = (*SHARED, "radix")

# (family, what is run)
Call: TypeAlias = tuple[str, Callable[[], object]]


@dataclass(frozen=True)
class Shape:
    """One way through the kernels: how long, how shared, how tight, and who takes it."""

    n: int
    k: int
    tuning: dict[str, int] = field(default_factory=dict)
    families: tuple[str, ...] = SHARED
    every_dtype: bool = False  # 16-bit dtypes differ in loads and keys, not in how they continue


SHAPES = (
    # One CTA, overflow.
    Shape(
        1501,
        64,
        {"ctas_per_row": 1, "staging": 1, "chunk": 64, "rank_capacity": 2},
        every_dtype=True,
    ),
    # A cluster of 8, overflow.
    Shape(
        2503,
        64,
        {"ctas_per_row": 8, "staging": 1, "chunk": 32, "rank_capacity": 2},
        every_dtype=True,
    ),
    # The small and the large block, overflow: only the resident kernels have them.
    Shape(1501, 64, {"threads": 256, "ctas_per_row": 1, "rank_capacity": 2}, ("resident",)),
    Shape(
        1501,
        64,
        {"threads": 1024, "ctas_per_row": 2, "staging": 1, "chunk": 64, "rank_capacity": 2},
        ("resident",),
    ),
    # A cluster of 16, undershoot.
    Shape(4096, 64, {"ctas_per_row": 16, "force_undershoot": 1, "rank_capacity": 3, "staging": 1}),
    # As planned, without a continuation.
    Shape(5001, 512, families=(*FAMILIES, "auto"), every_dtype=True),
    # One CTA, undershoot, and counting given up.
    Shape(1201, 40, {"ctas_per_row": 1, "force_undershoot": 1, "staging": 1, "max_verify": 1}),
    Shape(3001, 300, {"ctas_per_row": 2}),
    Shape(3001, 300, {"ctas_per_row": 1, "threads": 1024}, ("resident",)),
    Shape(1501, 64, {"ctas_per_row": 1, "rank_capacity": 1}, FAMILIES),
)


def _rows(n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scores = torch.cat([make_rows(kind, 1, n, k, dtype=dtype) for kind in KINDS])
    hints = [
        make_hint(name, scores[i : i + 1], k)
        for i, name in enumerate(("exact", "random_bits", "zeros", "overlap_5_tenths", "bottom_k"))
    ]
    return scores, torch.cat(hints)


def _odd_storage(scores: Tensor, device: str) -> Tensor:
    """On the device, misaligned, and ending with the allocation: a read beyond it is seen."""
    flat = torch.cat([scores.new_zeros(1), scores.reshape(-1)]).to(device)
    return flat[1:].view(scores.shape)


def _check(case: Case, device: str) -> None:
    placed = {
        name: value.to(device)
        for name, value in vars(case).items()
        if isinstance(value, Tensor) and name != "scores"
    }
    # The oracle works on the CPU: the tool need not follow torch's own kernels.
    check(replace(case, scores=_odd_storage(case.scores, device), **placed), oracle_on="cpu")


def _check_kv(case: Case, device: str) -> None:
    """Winners' places in a KV cache of one-key pages in reverse order."""
    pages = torch.arange(case.n, dtype=torch.int32).flip(0)
    table = pages.repeat(case.rows, 1)
    placed = None if case.lengths is None else case.lengths.to(device)
    kv_indices, indices = gvr_topk.topk_kv(
        _odd_storage(case.scores, device),
        case.k,
        page_table=table.to(device),
        page_size=1,
        lengths=placed,
        algorithm=case.algorithm,
    )
    kv_indices, indices = kv_indices.cpu(), indices.cpu()
    assert_exact(exact_answer(case.scores, case.k, lengths=case.lengths), indices)
    expected = pages[indices.long().clamp(min=0)].masked_fill(indices < 0, -1)
    assert torch.equal(kv_indices, expected), "a winner has another one's place"


def _check_winners(ranks: int, k: int, dtype: torch.dtype, device: str) -> None:
    """Lists of several ranks, exchanged and merged: on the device as on the CPU."""
    ops = torch.ops.gvr
    shards = make_rows("quantised_33", 2 * ranks, 2 * k, k, dtype=dtype).view(ranks, 2, -1)
    lengths = torch.tensor([2 * k, k // 2])
    found = {}
    for where in ("cpu", device):
        lists = [ops.topk(shard, k, lengths=lengths, sorted=True) for shard in shards]
        lists = [(values.to(where), indices.to(where)) for values, indices in lists]
        packed = [ops.pack_winners(*own, rank=r, world=ranks) for r, own in enumerate(lists)]
        gathered = torch.stack(packed)
        merged = ops.merge_winners(gathered, dtype)
        owners = (merged[1] % ranks).where(merged[1] >= 0, -1)
        counts = torch.stack([(owners == rank).sum(-1) for rank in range(ranks)])
        placed = [
            ops.place_winners(*own, counts, r, rank=r, world=ranks) for r, own in enumerate(lists)
        ]
        ordered = ops.order_winners(torch.stack(placed).sum(0, dtype=torch.int32), counts, dtype)
        parts = ops.own_winners(gathered, *lists[0], 0), ops.keep_winners(*lists[0], counts[0])
        assert torch.equal(merged[1], ordered[1]) and torch.equal(parts[0][1], parts[1][1])
        keys = ops.winner_keys(*lists[0])
        bound, before = ops.count_digits(keys, None, None, 63, 52, 11)
        digits = ops.count_digits(keys, bound, before, 52, 50, 2)
        results = (merged, *parts, (keys, before), digits)
        found[where] = [tensor.cpu() for pair in results for tensor in pair]
    for expected, got in zip(found["cpu"], found[device], strict=True):
        assert torch.equal(expected, got), "the device merges otherwise than the CPU"


def calls(device: str) -> list[Call]:
    """The whole suite."""
    made = []
    for label, dtype in DTYPES.items():
        for shape in SHAPES:
            if label != "fp32" and not shape.every_dtype:
                continue
            scores, hint = _rows(shape.n, shape.k, dtype)
            for family in shape.families:
                case = Case(
                    scores,
                    shape.k,
                    api="topk",
                    hint=None if family == "radix" else hint,
                    algorithm=family,
                    tuning=shape.tuning,
                )
                made.append((family, partial(_check, case, device)))
        made += _surroundings(label, device)
    return made


def _surroundings(label: str, device: str) -> list[Call]:
    """Sorting, telemetry, state, places, short rows and windows: what is around the selection."""
    dtype = DTYPES[label]
    scores, hint = _rows(1501, 64, dtype)
    lengths = torch.tensor([1501, 65, 64, 0, -1])
    base = Case(scores, 64, hint=hint, lengths=lengths, sorted=True)
    beyond = -9 if device == "cpu" else 9  # an error where the host sees it
    slots = torch.tensor([3, 0, -1, beyond, 1])
    made: list[Call] = []
    for family in FAMILIES if label == "fp32" else ("auto",):
        of = replace(base, algorithm=family)
        stateful = replace(of, api="step", slots=slots, table=(4, 1, 50))
        for what, case in {
            "sorted, guarded": replace(of, api="out"),
            "telemetry": replace(of, api="explain"),
            "state": stateful,
            "noise": replace(stateful, noise=7),
        }.items():
            made.append((f"{family}, {what}", partial(_check, case, device)))
        made.append((f"{family}, places", partial(_check_kv, of, device)))
    if label != "fp16":
        wide = make_rows("quantised_33", 2, 3500, 700, dtype=dtype)
        for k in (700, 3000):
            made.append(("sort", partial(_check, Case(wide, k, api="out", sorted=True), device)))
    for ranks, k in ((2, 300), (5, 65)):
        made.append(("winners", partial(_check_winners, ranks, k, dtype, device)))
    if label == "fp32":
        wide = make_rows("quantised_33", 2, 9001, 8500)
        made.append(("large k", partial(_check, Case(wide, 8500, api="out"), device)))
    return made


def deal(whole: list[Call], which: int, shares: int) -> list[Call]:
    """Share `which` of 1 .. `shares`. In rotation: families follow each other at a step that may
    divide the number of shares."""
    return [call for i, call in enumerate(whole) if (i + i // shares) % shares == which - 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--share", metavar="I/N", default="1/1", help="every N-th call")
    parser.add_argument("--only", help="a part of a family's name")
    parser.add_argument("--until", type=float, help="no call begins after this time (Unix)")
    arguments = parser.parse_args()
    which, shares = map(int, arguments.share.split("/"))
    chosen = [call for call in calls(arguments.device) if (arguments.only or "") in call[0]]
    chosen = deal(chosen, which, shares)
    done: Counter[str] = Counter()
    for family, run in chosen:
        if arguments.until is not None and time.time() > arguments.until:
            break
        run()
        done[family] += 1
        record = {"calls": done.total(), "of": len(chosen), "by_family": dict(sorted(done.items()))}
        print(json.dumps(record), flush=True)
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
