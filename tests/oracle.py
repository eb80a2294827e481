# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's oracle under the name by which tests import it."""

from gvr_topk.fuzz.oracle import (
    Answer,
    assert_exact,
    best_indices,
    bits,
    canonical,
    exact_answer,
    gather_values,
    rank_keys,
    windows,
)

__all__ = [
    "Answer",
    "assert_exact",
    "best_indices",
    "bits",
    "canonical",
    "exact_answer",
    "gather_values",
    "rank_keys",
    "windows",
]
