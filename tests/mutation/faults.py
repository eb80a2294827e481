# SPDX-License-Identifier: Apache-2.0
"""Small faults of the kernels, each of which some test must notice.

A fault replaces `old`, which must occur exactly once in its file, by `new`. When a kernel is
rewritten, `run.py --list` names the faults that no longer find their place: anchor them anew.
Faults that change only the time of a call are no faults: the answer would be the same.
"""

from __future__ import annotations

from fault import Fault
from faults_cuda import ON_CUDA, ON_DIFFERENCE, ON_DIVIDE, ON_RESIDENT
from faults_serving import ON_CACHE, ON_SERVING
from faults_winners import ON_WINNERS

ORDER, ROWS, PLAN = "csrc/common/order.h", "csrc/common/rows.h", "csrc/common/plan.cpp"
CPU = "csrc/cpu"
GUARDS = "tests/hazards/test_guard_pages.py::test_nothing_outside_the_tensors_is_touched"

COMMON = [
    Fault(
        "infinity is NaN",
        ORDER,
        "if (magnitude > 0x7F800000u) return kKeyNan;",
        "if (magnitude >= 0x7F800000u) return kKeyNan;",
        "> for >= at the bound of the infinities",
    ),
    Fault(
        "negative zero is less",
        ORDER,
        "  if (magnitude == 0u) return kKeyZero;\n",
        "",
        "-0.0 and +0.0 are one score",
    ),
    Fault(
        "ties to the highest index",
        ORDER,
        "static_cast<uint32_t>(~static_cast<uint32_t>(index))",
        "static_cast<uint32_t>(index)",
        "the lowest index wins among equals",
        device="cuda",
    ),
    Fault(
        "fp16 subnormals doubled",
        ORDER,
        "static_cast<float>(mantissa) * 5.9604644775390625e-8f",
        "static_cast<float>(mantissa) * 1.1920928955078125e-7f",
        "subnormals would pass the least normal numbers",
    ),
    Fault(
        "length beyond the row",
        ROWS,
        "    if (end > p.n) end = p.n;\n",
        "",
        "a length is data and clamped to the row",
    ),
    Fault(
        "window one score short",
        ROWS,
        "bounded - p.next_n + row_draft(p, row) + 1",
        "bounded - p.next_n + row_draft(p, row)",
        "the last draft sees the whole length",
    ),
    Fault(
        "draft row before the first score",
        ROWS,
        "    if (end < 0) end = 0;\n",
        "",
        "a draft of a short request may end before it begins",
    ),
    Fault(
        "start before the row",
        ROWS,
        "    if (begin < 0) begin = 0;\n",
        "",
        "a start is data and clamped to the row",
    ),
    Fault(
        "start beyond the end",
        ROWS,
        "    if (begin > end) begin = end;\n",
        "",
        "an empty window must stay empty",
    ),
    Fault(
        "hint one past the window",
        ROWS,
        "position < window.end",
        "position <= window.end",
        "a hinted position is looked at only inside the window",
    ),
    Fault(
        "hint before the window",
        ROWS,
        "position >= window.begin",
        "position >= 0",
        "scores before the start are never looked at",
    ),
    Fault(
        "slot one past the table",
        ROWS,
        "slot >= 0 && slot < p.state_slots",
        "slot >= 0 && slot <= p.state_slots",
        "the entry after the last belongs to another layer",
    ),
    Fault(
        "slot -1 is slot 0",
        ROWS,
        "return slot >= 0 && slot < p.state_slots ? slot : -1;",
        "return slot < 0 ? 0 : slot < p.state_slots ? slot : -1;",
        "padded rows must leave the state alone",
    ),
    Fault(
        "hint count unchecked",
        ROWS,
        "  if (count > p.state_hints) count = p.state_hints;\n",
        "",
        "a state of any bits is harmless",
    ),
    Fault(
        "accepted draft unchecked",
        ROWS,
        "  if (accepted < 0 || accepted >= p.state_depth) accepted = 0;\n"
        "  const int32_t* entry = state_entry",
        "  if (accepted < 0 || accepted > p.state_depth) accepted = 0;\n"
        "  const int32_t* entry = state_entry",
        "a state of any bits is harmless",
        test="tests/hazards/test_state.py::test_an_accepted_draft_that_does_not_exist_is_the_first",
    ),
    Fault(
        "staging of exactly K",
        PLAN,
        "std::max<int64_t>(tuning.staging, int64_t{shape.k} + 32)",
        "std::max<int64_t>(tuning.staging, int64_t{shape.k})",
        "a step must fit beside K entries",
    ),
]

ON_CPU = [
    Fault(
        "threshold one too high",
        f"{CPU}/collect.cpp",
        "  floor_ = cut.key;\n",
        "  floor_ = cut.key + 1;\n",
        "off by one when the threshold rises",
    ),
    Fault(
        "survivors cut off",
        f"{CPU}/collect.cpp",
        "    count_ += found;\n",
        "    count_ = std::min(count_ + found, limits_.staging - 1);\n",
        "a full buffer must have an exact continuation",
    ),
    Fault(
        "compaction to K - 1",
        f"{CPU}/collect.cpp",
        "find_cut(*ops_, {&staged, 1}, k_, range_, refine_rounds_)",
        "find_cut(*ops_, {&staged, 1}, std::max(k_ - 1, 1), range_, refine_rounds_)",
        "the K best of what was read stay staged",
    ),
    Fault(
        "rank off by one",
        f"{CPU}/refine.cpp",
        "if (count >= rank) {",
        "if (count > rank) {",
        "> for >= in the search for the K-th key",
    ),
    Fault(
        "keys forgotten when narrowed",
        f"{CPU}/refine.cpp",
        "const int64_t count = left_out + count_above",
        "const int64_t count = count_above",
        "what is better than the range still counts",
    ),
    Fault(
        "one tie too many",
        f"{CPU}/refine.cpp",
        "if (slice.keys[i] == key && --tie == 0)",
        "if (slice.keys[i] == key && tie-- == 0)",
        "off by one among the ties",
    ),
    Fault(
        "every tie wins",
        f"{CPU}/refine.cpp",
        "if (kth.ties == kth.equal)",
        "if (kth.ties <= kth.equal)",
        "a plateau at the K-th place writes more than K",
    ),
    Fault(
        "sorted by too few digits",
        f"{CPU}/refine.cpp",
        "std::bit_width(range.high - range.low)",
        "std::bit_width(range.high - range.low) / 2",
        "the highest digits of the distance decide",
    ),
    Fault(
        "undershoot accepted",
        f"{CPU}/row.cpp",
        "while (admitted < p.k) {",
        "while (admitted < p.k - 1) {",
        "one survivor too few",
    ),
    Fault(
        "last score of the row ignored",
        f"{CPU}/row.cpp",
        "n * (s + 1) / slices_)",
        "(n - 1) * (s + 1) / slices_)",
        "slices make up the whole window",
    ),
    Fault(
        "slices overlap",
        f"{CPU}/row.cpp",
        "view_.window.begin + n * s / slices_)",
        "view_.window.begin + n * s / slices_ - (s > 0))",
        "no score belongs to two slices",
    ),
    Fault(
        "padding begins late",
        f"{CPU}/row.cpp",
        "std::fill(indices_ + found, indices_ + p.k, -1);",
        "std::fill(indices_ + std::min(found + 1, p.k), indices_ + p.k, -1);",
        "the tail is -1 from the first place on",
    ),
    Fault(
        "padding without values",
        f"{CPU}/row.cpp",
        "for (int32_t i = found; i < p.k; ++i) {",
        "for (int32_t i = found + 1; i < p.k; ++i) {",
        "every value of the tail is -inf",
    ),
    Fault(
        "short rows end at K - 1",
        f"{CPU}/row.cpp",
        "  if (n <= p.k) {\n    answer_short(call);",
        "  if (n < p.k) {\n    answer_short(call);",
        "n = K has nothing to select",
        test="tests/hazards/test_coverage.py::test_every_path_of_short_rows_is_entered",
    ),
    Fault(
        "short rows unsorted",
        f"{CPU}/row.cpp",
        "    sort_by_rank(keys_.data(), indices_, n, scratch_);\n",
        "",
        "sorted holds for short rows",
    ),
    Fault(
        "a short row's threshold",
        f"{CPU}/row.cpp",
        "key_to_float(view_.window.size() <= p.k ? kKeyMinusInf : cut_.key)",
        "key_to_float(cut_.key)",
        "a short row has no K-th score to remember",
        test="tests/hazards/test_state.py::test_a_short_row_remembers_no_threshold",
    ),
    Fault(
        "hits without the K-th",
        f"{CPU}/row.cpp",
        "rank_key(keys[i], positions[i]) >= rank_key(cut_.key, cut_.last_index)",
        "rank_key(keys[i], positions[i]) > rank_key(cut_.key, cut_.last_index)",
        "the K-th is a winner",
        test="tests/hazards/test_coverage.py::test_every_winner_of_a_perfect_hint_is_a_hit",
    ),
    Fault(
        "the accepted draft answered first",
        f"{CPU}/select.cpp",
        "first + (accepted + i) % p.next_n",
        "first + (accepted + i - 1) % p.next_n",
        "the entry that hints the others is rewritten last",
    ),
    Fault(
        "empty rows accept a draft",
        f"{CPU}/select.cpp",
        "if (slot >= 0 && row_window(p, last).size() > 0) {",
        "if (slot >= 0) {",
        "a row without scores leaves the state alone",
    ),
    Fault(
        "last tie dropped, plain loop",
        f"{CPU}/vector_ops.cpp",
        "(index <= cut.last_index)",
        "(index < cut.last_index)",
        "the last winner among the ties is kept",
    ),
    Fault(
        "subnormals flushed",
        f"{CPU}/vector_ops.cpp",
        "_mm_setcsr(0x1F80);",
        "_mm_setcsr(0x9FC0);",
        "comparisons see subnormal scores",
    ),
    Fault(
        "scores beyond the end, AVX-512",
        f"{CPU}/vector_ops_avx512.cpp",
        "const __mmask16 m = above(load_first<kType>(row, i, valid), limit) & valid;",
        "const __mmask16 m = above(load_first<kType>(row, i, valid), limit);",
        "lanes beyond the end hold no score",
    ),
    Fault(
        "infinity is NaN, AVX-512",
        f"{CPU}/vector_ops_avx512.cpp",
        "_mm512_cmpgt_epu32_mask(magnitude, _mm512_set1_epi32(0x7F800000))",
        "_mm512_cmpge_epu32_mask(magnitude, _mm512_set1_epi32(0x7F800000))",
        "> for >= in one of three instruction sets",
    ),
    Fault(
        "a pair past the row's end, AVX-512",
        f"{CPU}/vector_ops_avx512.cpp",
        "_mm512_max_epi32(_mm512_sub_epi32(index, _mm512_set1_epi32(1)), none)",
        "index",
        "16-bit scores are fetched in pairs that end inside the row",
        test=f"{GUARDS}[AVX512]",
    ),
    Fault(
        "a pair past the row's end, AVX2",
        f"{CPU}/vector_ops_avx2.cpp",
        "_mm256_max_epi32(_mm256_sub_epi32(index, _mm256_set1_epi32(1)), _mm256_setzero_si256());",
        "index;",
        "16-bit scores are fetched in pairs that end inside the row",
        test=f"{GUARDS}[AVX2]",
    ),
    Fault(
        "the last tie dropped, AVX2",
        f"{CPU}/vector_ops_avx2.cpp",
        "_mm256_andnot_si256(_mm256_cmpgt_epi32(index, last_index),",
        "_mm256_and_si256(_mm256_cmpgt_epi32(last_index, index),",
        "< for <= in one of three instruction sets",
    ),
    Fault(
        "radix: a batch past the row's end",
        f"{CPU}/radix.cpp",
        "std::min<int64_t>(kBatch, row.window.end - begin)",
        "kBatch",
        "what lies beyond may not be memory",
        test=f"{GUARDS}[DEFAULT]",
    ),
    Fault(
        "every slice by its own guess",
        f"{CPU}/row.cpp",
        "return f != least; })) {",
        "return f < least; })) {",
        "a slice with a higher floor refuses what the others count on",
        test="tests/hazards/test_concurrency.py"
        "::test_a_hint_that_changes_during_the_call_never_changes_the_answer",
    ),
    Fault(
        "zero read as below itself",
        f"{CPU}/vector_ops.h",
        "floor == kKeyZero - 1 ? kKeyZero - 2 : floor",
        "floor",
        "the key below zero's has no float of its own",
    ),
    Fault(
        "samples past the window",
        f"{CPU}/guess.cpp",
        "static_cast<uint32_t>(stride - length + 1) >> 32",
        "static_cast<uint32_t>(stride + length) >> 32",
        "the guess reads inside the window only",
        test=f"{GUARDS}[DEFAULT]",
    ),
]

FAULTS = [
    *COMMON,
    *ON_CPU,
    *ON_SERVING,
    *ON_CACHE,
    *ON_CUDA,
    *ON_DIFFERENCE,
    *ON_RESIDENT,
    *ON_DIVIDE,
    *ON_WINNERS,
]
