# SPDX-License-Identifier: Apache-2.0
"""Faults of the lists of winners that ranks exchange, see faults.py."""

from __future__ import annotations

from fault import Fault

COMMON, CPU = "csrc/common/winners.h", "csrc/cpu/winners.cpp"
CUDA = "csrc/cuda/kernels/winners.cuh"
MERGED = "tests/distributed/test_winners.py::test_a_merge_is_one_sort_of_all_lists"

ON_WINNERS = [
    Fault(
        "pages of another rank",
        COMMON,
        "(page * p.world + p.rank) * p.page",
        "(page * p.world) * p.page",
        "a local index is global index only on rank 0",
        test=MERGED,
    ),
    Fault(
        "a list runs into the next",
        CPU,
        "head.entry == head.end ? -1 : *head.entry - bias_",
        "*head.entry - bias_",
        "lists of one message follow each other without a gap",
        test=MERGED,
    ),
    Fault(
        "own winners of every rank",
        CPU,
        "} else if (rank == p.own) {",
        "} else {",
        "only the winners of the own list are its prefix",
        test=MERGED,
    ),
    Fault(
        "one winner too many is kept",
        CPU,
        "bounded_count(p.counts[row], static_cast<uint32_t>(p.k))",
        "bounded_count(p.counts[row] + 1, static_cast<uint32_t>(p.k))",
        "what follows the prefix is padding",
        test=MERGED,
    ),
    Fault(
        "a key on the edge counts as before",
        COMMON,
        "if (ascending[middle] < limit) {",
        "if (ascending[middle] <= limit) {",
        "an edge is the first key of the next digit",
        test="tests/distributed/test_winners.py::test_digits_close_in_on_the_kth_key",
    ),
    Fault(
        "padding of all belongs to nobody",
        COMMON,
        "if (p_.counts != nullptr && rank_ + 1 < p_.world) {",
        "if (p_.counts != nullptr) {",
        "without it the tail of a short row is not written",
        device="cuda",
        test=MERGED,
    ),
    Fault(
        "32-ary probes one too late",
        CUDA,
        "return low + step() * (threadIdx.x % 32 + 1) - 1;",
        "return low + step() * (threadIdx.x % 32 + 1);",
        "a probe is the last of its step",
        device="cuda",
        test=MERGED,
    ),
    Fault(
        "the worst neighbour's bracket forgotten",
        CUDA,
        "max(bounds[s].low, bounds[kTogether + s].high)",
        "bounds[s].high",
        "32 neighbours may lie far apart in another list",
        device="cuda",
        test=MERGED,
    ),
    Fault(
        "a warp leaves one place early",
        CUDA,
        "if (place < k) place = find_place",
        "if (place + 1 < k) place = find_place",
        "the K-th place has a winner, too",
        device="cuda",
        test=MERGED,
    ),
]
