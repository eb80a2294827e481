# SPDX-License-Identifier: Apache-2.0
"""Small faults of the kernels, each of which some test must notice.

A fault replaces `old`, which must occur exactly once in its file, by `new`. When a kernel is
rewritten, `run.py --list` names the faults that no longer find their place: anchor them anew.
Faults that change only the time of a call are no faults: the answer would be the same.
"""

from __future__ import annotations

from dataclasses import dataclass

ORDER, ROWS, PLAN = "csrc/common/order.h", "csrc/common/rows.h", "csrc/common/plan.cpp"
CPU, PHASES, KERNELS = "csrc/cpu", "csrc/cuda/phases", "csrc/cuda/kernels"


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    why: str
    device: str = "cpu"  # where it is looked for: "cpu", or "cuda" for what only a GPU shows
    tool: str | None = None  # the tool of compute-sanitizer that may notice what no result shows

    @property
    def needs_avx512(self) -> bool:
        """A machine without it never runs the code."""
        return "avx512" in self.file


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
    ),
    Fault(
        "hits without the K-th",
        f"{CPU}/row.cpp",
        "rank_key(keys[i], positions[i]) >= rank_key(cut_.key, cut_.last_index)",
        "rank_key(keys[i], positions[i]) > rank_key(cut_.key, cut_.last_index)",
        "the K-th is a winner",
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
    ),
]

ON_CUDA = [
    Fault(
        "radix digit off by one",
        f"{KERNELS}/radix.cuh",
        "if (before < wanted && wanted <= before + here[i]) {",
        "if (before <= wanted && wanted < before + here[i]) {",
        "the digit that holds the K-th place",
        device="cuda",
    ),
    Fault(
        "radix forgets what is above",
        f"{KERNELS}/radix.cuh",
        "    wanted -= scratch.above;\n",
        "",
        "entries above the digit count towards K",
        device="cuda",
    ),
    Fault(
        "radix drops the K-th",
        f"{KERNELS}/radix.cuh",
        "if (rank_key(key, index) < least) return;",
        "if (rank_key(key, index) <= least) return;",
        "> for >= at the last digit of a tie",
        device="cuda",
    ),
    Fault(
        "radix counts before the bins are clear",
        f"{KERNELS}/radix.cuh",
        "scratch.bins[b] = 0;\n    __syncthreads();\n",
        "scratch.bins[b] = 0;\n",
        "a dropped barrier",
        device="cuda",
        tool="racecheck",
    ),
    Fault(
        "radix index digits from zero",
        f"{KERNELS}/radix.cuh",
        "prefix |= (0xFFFFFFFFull >> index_bits) << index_bits;",
        "prefix |= 0;",
        "inverted indices share their leading ones",
        device="cuda",
    ),
    Fault(
        "radix stores the digit, not the K-th score",
        f"{KERNELS}/radix.cuh",
        "kth_key = min(kth_key, key);",
        "kth_key = max(kth_key, key);",
        "the state remembers the K-th score",
        device="cuda",
    ),
    Fault(
        "one hint past the entry",
        "csrc/common/rows.h",
        "return at < static_cast<uint32_t>(p.state_hints) ?",
        "return at <= static_cast<uint32_t>(p.state_hints) ?",
        "the word behind an entry is the next entry's count",
        device="cuda",
    ),
    Fault(
        "short rows one index too long",
        f"{PHASES}/emit.cuh",
        "    if (i < n) {\n",
        "    if (i <= n) {\n",
        "n indices, then -1",
        device="cuda",
    ),
    Fault(
        "empty rows touch the state",
        f"{PHASES}/emit.cuh",
        "  if (winners == 0) return;",
        "  if (winners < 0) return;",
        "a row without scores leaves the state alone",
        device="cuda",
    ),
    Fault(
        "padding without values on the GPU",
        f"{PHASES}/emit.cuh",
        "    if (values != nullptr) values[position] = "
        "static_cast<Storage>(E::Traits::kMinusInf);\n",
        "",
        "every value of the tail is -inf",
        device="cuda",
    ),
    Fault(
        "accepted one survivor too many",
        f"{PHASES}/verify.cuh",
        "      if (count <= most) {\n",
        "      if (count <= most + 1) {\n",
        "counted survivors are stored without a bound",
        device="cuda",
    ),
    Fault(
        "verify clears the next counter",
        f"{PHASES}/verify.cuh",
        "scratch.verified[(turn + 2) % 3] = 0;",
        "scratch.verified[(turn + 1) % 3] = 0;",
        "the counter that others may be adding to",
        device="cuda",
        tool="racecheck",
    ),
    Fault(
        "one survivor past the staging area",
        f"{PHASES}/collect.cuh",
        "if (position < staging.capacity) {",
        "if (position <= staging.capacity) {",
        "the first index lies behind the last score",
        device="cuda",
    ),
    Fault(
        "ties of the bound refused",
        f"{PHASES}/collect.cuh",
        "below_key = max(below_key, rank_key_score(kth) - 1u);",
        "below_key = max(below_key, rank_key_score(kth));",
        "ties inside the chunk are decided by index",
        device="cuda",
    ),
    Fault(
        "careful steps one too wide",
        f"{PHASES}/collect.cuh",
        "static_cast<uint32_t>(stop - at) > staging.capacity)",
        "static_cast<uint32_t>(stop - at) > staging.capacity + 1)",
        "a truncated buffer",
        device="cuda",
    ),
    Fault(
        "compaction drops the K-th",
        f"{PHASES}/collect.cuh",
        "staged_rank<kType>(staging, i) >= least;",
        "staged_rank<kType>(staging, i) > least;",
        "> for >= when the threshold rises",
        device="cuda",
    ),
    Fault(
        "overflow unnoticed",
        f"{PHASES}/collect.cuh",
        "    if (count > staging.capacity) {\n",
        "    if (count > staging.capacity + 8) {\n",
        "a truncated buffer",
        device="cuda",
    ),
    Fault(
        "crossing bin off by one",
        f"{PHASES}/refine.cuh",
        "if (before < wanted && wanted <= before + here) {",
        "if (before <= wanted && wanted < before + here) {",
        "the bin that holds the K-th place",
        device="cuda",
    ),
    Fault(
        "winners of earlier rounds forgotten",
        f"{PHASES}/refine.cuh",
        "crossing.above += scratch.crossing.above;",
        "crossing.above = scratch.crossing.above;",
        "positions continue over the rounds",
        device="cuda",
    ),
    Fault(
        "least of the range is outside",
        f"{PHASES}/refine.cuh",
        "return rank > crossing.high ? 1 : (rank >= crossing.low ? 0 : -1);",
        "return rank > crossing.high ? 1 : (rank > crossing.low ? 0 : -1);",
        "> for >= at the range's end",
        device="cuda",
    ),
    Fault(
        "rank one too high",
        f"{PHASES}/refine.cuh",
        "scratch.ranks[j] > mine ? 1u : 0u",
        "scratch.ranks[j] >= mine ? 1u : 0u",
        "an entry is not better than itself",
        device="cuda",
    ),
    Fault(
        "NaN in the lowest bin",
        f"{PHASES}/refine.cuh",
        "    if (x != x) return Config::kBins - 1;\n",
        "",
        "NaN is the largest score",
        device="cuda",
    ),
    Fault(
        "undershoot accepted on the GPU",
        f"{PHASES}/refine.cuh",
        "return scratch.crossing.total >= k;",
        "return scratch.crossing.total + 8 >= k;",
        "a few survivors too few",
        device="cuda",
    ),
    Fault(
        "a vector past the end",
        f"{PHASES}/slice.cuh",
        "vectors = (end - body) / E::kPerVector;",
        "vectors = (end - body + E::kPerVector - 1) / E::kPerVector;",
        "no byte outside the window is read",
        device="cuda",
    ),
    Fault(
        "slices ignore the length",
        f"{PHASES}/select.cuh",
        "static_cast<int>(min(step, n - begin))",
        "static_cast<int>(step)",
        "the last slice ends with the window",
        device="cuda",
    ),
    Fault(
        "sorted worst first",
        f"{KERNELS}/finish.cuh",
        "return a > b;",
        "return a < b;",
        "sorted is best first",
        device="cuda",
    ),
    Fault(
        "hits without the K-th on the GPU",
        f"{KERNELS}/finish.cuh",
        "position) >= kth ? 1 : 0",
        "position) > kth ? 1 : 0",
        "the K-th is a winner",
        device="cuda",
    ),
]

FAULTS = [*COMMON, *ON_CPU, *ON_CUDA]
