# SPDX-License-Identifier: Apache-2.0
"""One question asked along many paths: calls that must all give the same exact answer."""

from __future__ import annotations

from typing import Any

import torch
from generators import HINTS, cross_hints, make_rows
from oracle import Answer, assert_exact, exact_answer
from torch import Tensor

import gvr_topk
from gvr_topk.testing import tuning

# Overrides that send a row of 1,500 scores down every path. The least staging is k + 32 entries.
TUNINGS: dict[str, dict[str, int]] = {
    "default": {},
    "tight staging": {"staging": 1},
    "short chunks": {"chunk": 64},
    "tight staging, short chunks": {"staging": 1, "chunk": 64},
    "few bins": {"bins": 2},
    "rank one at a time": {"rank_capacity": 1},
    "verify once": {"max_verify": 1},
    "verify once, tight": {"max_verify": 1, "staging": 1, "chunk": 128, "rank_capacity": 8},
    "undershoot": {"force_undershoot": 1},
    "undershoot, tight": {"force_undershoot": 1, "staging": 1, "chunk": 64, "rank_capacity": 2},
    "ignore hint": {"ignore_hint": 1},
    "2 slices": {"ctas_per_row": 2},
    "4 slices, tight": {"ctas_per_row": 4, "staging": 1, "chunk": 32},
    "8 slices": {"ctas_per_row": 8, "rank_capacity": 4},
    "8 slices, undershoot": {"ctas_per_row": 8, "force_undershoot": 1, "staging": 1},
    "16 slices": {"ctas_per_row": 16},
    "large block": {"threads": 1024, "ctas_per_row": 2},
    "16 slices, verify once, tight": {
        "ctas_per_row": 16,
        "max_verify": 1,
        "staging": 1,
        "chunk": 32,
        "rank_capacity": 2,
    },
}

# For rows long enough to need no override: only what changes the route.
FEW_TUNINGS = ("default", "undershoot", "verify once", "8 slices")


def check_call(
    answer: Answer, scores: Tensor, k: int, *, label: str = "", **arguments: Any
) -> gvr_topk.TopKResult:
    """One call, checked in every point of the contract."""
    result = gvr_topk.topk(scores, k, **arguments)
    assert_exact(
        answer, result.indices, result.values, sorted=arguments.get("sorted", False), label=label
    )
    return result


def check_paths(
    scores: Tensor,
    k: int,
    algorithm: str,
    *,
    hint: Tensor | None = None,
    tunings: tuple[str, ...] = tuple(TUNINGS),
    answer: Answer | None = None,
    **window: Any,
) -> None:
    """The exact answer under every tuning."""
    if answer is None:
        answer = exact_answer(scores, k, **window)
    for name in tunings:
        with tuning(**TUNINGS[name]):
            label = f"{algorithm}, {name}"
            check_call(answer, scores, k, hint=hint, algorithm=algorithm, label=label, **window)


def check_paths_and_hints(
    scores: Tensor,
    k: int,
    algorithm: str,
    *,
    tunings: tuple[str, ...] = tuple(TUNINGS),
) -> None:
    """The exact answer of every row, with every kind of hint and with none, under every tuning."""
    answer = exact_answer(scores, k)
    check_paths(scores, k, algorithm, tunings=tunings, answer=answer)
    rows, hint = cross_hints(scores, k)
    repeated = answer.rows(torch.arange(len(scores), device=scores.device).repeat(len(HINTS)))
    check_paths(rows, k, algorithm, hint=hint, tunings=tunings, answer=repeated)


def stack_rows(
    names: list[str],
    n: int,
    k: int,
    device: str,
    *,
    each: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """`each` rows of every named kind, in one batch."""
    return torch.cat(
        [make_rows(name, each, n, k, device=device, dtype=dtype, seed=seed) for name in names]
    )
