# SPDX-License-Identifier: Apache-2.0
"""A few small calls that together enter every kernel, path and continuation; each is checked.

    python tests/sanitizer/workload.py --device cuda

Made to run under compute-sanitizer: all inputs are made on the CPU and copied, so that hardly any
kernel but the library's is launched, and rows are short. Prints one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from gvr_topk.fuzz.case import Case, check
from gvr_topk.fuzz.hints import make_hint
from gvr_topk.fuzz.rows import make_rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Ties, plateaus, NaN, and rows whose every score overflows a staging area.
KINDS = ("quantised_33", "relu_90_percent_zero", "constant", "more_than_k_nan", "ascending")


@dataclass(frozen=True)
class Shape:
    """One way through a kernel: how long, how shared, how tight."""

    n: int
    k: int
    tuning: dict[str, int] = field(default_factory=dict)


SHAPES = {
    "one CTA": Shape(1501, 64, {"ctas_per_row": 1}),
    "one CTA, overflow": Shape(
        1501, 64, {"ctas_per_row": 1, "staging": 1, "chunk": 64, "rank_capacity": 2}
    ),
    "one CTA, undershoot": Shape(
        1201, 40, {"ctas_per_row": 1, "force_undershoot": 1, "staging": 1, "max_verify": 1}
    ),
    "cluster of 2": Shape(3001, 300, {"ctas_per_row": 2}),
    "cluster of 8, overflow": Shape(
        2503, 64, {"ctas_per_row": 8, "staging": 1, "chunk": 32, "rank_capacity": 2}
    ),
    "cluster of 16, undershoot": Shape(
        4096, 64, {"ctas_per_row": 16, "force_undershoot": 1, "rank_capacity": 3, "staging": 1}
    ),
    "as planned": Shape(9001, 512),
}


def _rows(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    scores = torch.cat([make_rows(kind, 1, shape.n, shape.k, dtype=dtype) for kind in KINDS])
    hints = [
        make_hint(name, scores[i : i + 1], shape.k)
        for i, name in enumerate(("exact", "random_bits", "zeros", "overlap_5_tenths", "bottom_k"))
    ]
    return scores, torch.cat(hints)


def _odd_storage(scores: Tensor, device: str) -> Tensor:
    """On the device, misaligned, and ending with the allocation: a read beyond it is seen."""
    flat = torch.cat([scores.new_zeros(1), scores.reshape(-1)]).to(device)
    return flat[1:].view(scores.shape)


def cases(device: str) -> list[tuple[str, Case]]:
    """(family, case) of the whole suite."""
    made = []
    for (name, shape), (label, dtype) in product(SHAPES.items(), DTYPES.items()):
        scores, hint = _rows(shape, dtype)
        # 16-bit dtypes differ from fp32 in loads and keys, not in how they continue.
        families = ("resident", "stream", "gvr")
        if label == "fp32":
            families += ("radix", "auto")
        if name in ("one CTA", "as planned"):
            families = ("resident", "stream", "gvr", "radix", "auto")
        for family in families:
            if family == "radix" and "cluster" in name:
                continue
            case = Case(
                _odd_storage(scores, device),
                shape.k,
                api="topk",
                hint=None if family == "radix" else hint.to(device),
                algorithm=family,
                tuning=shape.tuning,
            )
            made.append((family, case))
    return made + _surroundings(device)


def _surroundings(device: str) -> list[tuple[str, Case]]:
    """Sorting, telemetry, state, short rows and windows: what is around the selection."""
    made = []
    for label, dtype in DTYPES.items():
        shape = Shape(1501, 64)
        scores, hint = _rows(shape, dtype)
        lengths = torch.tensor([1501, 65, 64, 0, -1]).to(device)
        base = Case(
            _odd_storage(scores, device), 64, hint=hint.to(device), lengths=lengths, sorted=True
        )
        beyond = -9 if device == "cpu" else 9  # an error where the host sees it
        slots = torch.tensor([3, 0, -1, beyond, 1]).to(device)
        for family in ("resident", "stream", "gvr", "radix"):
            made.append((f"{family}, sorted, guarded", replace(base, api="out", algorithm=family)))
            made.append((f"{family}, telemetry", replace(base, api="explain", algorithm=family)))
            stateful = replace(base, api="step", slots=slots, table=(4, 1, 50), algorithm=family)
            made.append((f"{family}, state", stateful))
            if label == "fp32":
                made.append((f"{family}, noise", replace(stateful, noise=7)))
        for k in (700, 3000):
            wide = make_rows("quantised_33", 2, 3500, k, dtype=dtype)
            made.append(("sort", Case(_odd_storage(wide, device), k, api="out", sorted=True)))
    wide = make_rows("quantised_33", 2, 9001, 8500)
    made.append(("large k", Case(_odd_storage(wide, device), 8500, api="out")))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    device = parser.parse_args().device
    done: Counter[str] = Counter()
    for family, case in cases(device):
        # The oracle works on the CPU: the tool need not follow torch's own kernels.
        check(case, oracle_on="cpu")
        done[family] += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(json.dumps({"calls": sum(done.values()), "by_family": dict(sorted(done.items()))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
