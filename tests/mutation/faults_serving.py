# SPDX-License-Identifier: Apache-2.0
"""Small faults of what a server adds: shared slots, differences, and the cache's operations.

A slip there changes no selection, so the fuzzer is blind to most: each names its test.
"""

from __future__ import annotations

from fault import Fault

CPU, CACHE = "csrc/cpu", "csrc/ops/topk_cache.cpp"
SERVER, STEPS = "tests/ops/test_server.py", "tests/ops/test_topk_cache.py"
DIFFERENCE = "tests/ops/test_difference.py"

ON_SERVING = [
    Fault(
        "the first group takes the slot",
        f"{CPU}/serving.cpp",
        "for (int64_t group = p.groups - 1; group >= 0; --group) {",
        "for (int64_t group = 0; group < p.groups; ++group) {",
        "of rows that share a slot the last one has it",
        test=f"{SERVER}::test_the_last_row_of_a_request_wins",
    ),
    Fault(
        "a position leaves twice",
        f"{CPU}/serving.cpp",
        "  previous.erase(std::unique(previous.begin(), previous.end()), previous.end());\n",
        "",
        "a state may hold a position twice",
        test=f"{DIFFERENCE}::test_a_position_that_is_stored_twice_leaves_once",
    ),
    Fault(
        "an empty row lets everything leave",
        f"{CPU}/serving.cpp",
        "winners > 0 ? previous : selected;",
        "previous;",
        "a row without a valid score reads nothing",
        test=f"{DIFFERENCE}::test_a_row_without_scores_lets_nothing_leave",
    ),
    Fault(
        "hits counted for telemetry alone",
        f"{CPU}/row.cpp",
        "if (hint_.size > 0 && (stores || p.stats != nullptr)) count_hits(call);",
        "if (hint_.size > 0 && p.stats != nullptr) count_hits(call);",
        "the state remembers how good its hint was",
        test=f"{STEPS}::test_the_state_tells_how_many_hints_were_winners",
    ),
    Fault(
        "scores of short rows in pairs",
        f"{CPU}/row.cpp",
        "    if (view_.window.size() <= call.params.k) continue;\n",
        "",
        "a row of one 16-bit score has no pair",
        test="tests/hazards/test_guard_pages.py::test_nothing_outside_the_tensors_is_touched[AVX2]",
    ),
]

ON_CACHE = [
    Fault(
        "later parts by the first slots' maps",
        CACHE,
        "map_row.narrow(0, first, count)",
        "map_row.narrow(0, 0, count)",
        "a part of the entries at a time",
        test=f"{SERVER}::test_remap_of_many_entries_in_parts",
    ),
    Fault(
        "a seed of K hints",
        CACHE,
        "header.select(1, kStateCount).fill_(count);",
        "header.select(1, kStateCount).fill_(k_);",
        "a narrow entry holds fewer",
        test=f"{SERVER}::test_seed_leaves_what_a_step_would",
    ),
    Fault(
        "reset keeps the accepted draft",
        CACHE,
        "const Tensor headers = entries_.narrow(2, 0, kStateHeader);",
        "const Tensor headers = entries_.narrow(2, 0, kStateAccepted);",
        "a new request has accepted nothing",
        test=f"{STEPS}::test_reset_forgets_the_accepted_draft",
    ),
    Fault(
        "a destination twice",
        CACHE,
        'entries_of(dst, "dst", Repeats::kRefused)',
        'entries_of(dst, "dst", Repeats::kAllowed)',
        "which copy would stay is chance",
        test=f"{SERVER}::test_bad_calls_are_named_and_change_nothing",
    ),
]
