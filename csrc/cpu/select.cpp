// SPDX-License-Identifier: Apache-2.0
#include "select.h"

#include <algorithm>

#include "../common/rows.h"
#include "row.h"
#include "serving.h"

namespace gvr::cpu {
namespace {

constexpr int64_t kGrainScores = 32768;  // worth a task of their own

// Rows of one group share a hint in the state, and one of them overwrites it: that one comes
// last, so that every row sees the hint of the previous step.
void answer_group(const Call& call, int64_t group, RowSelector& selector) {
  const TopKParams& p = call.params;
  const int64_t first = group * p.next_n;
  const int64_t slot = group_slot(p, group);
  int32_t accepted = slot < 0 ? 0 : state_entry(p, slot, 0)[kStateAccepted];
  if (accepted < 0 || accepted >= p.state_depth) accepted = 0;
  thread_local std::vector<int32_t> previous;
  if (p.difference.entered != nullptr) read_previous(p, slot, previous);
  for (int64_t i = 1; i <= p.next_n; ++i) {
    const int64_t row = first + (accepted + i) % p.next_n;
    selector.answer(call, row);
    if (p.kv.out != nullptr) write_places(p, row);
    if (p.difference.entered != nullptr) write_difference(p, row, previous);
  }
  // Unless a commit says otherwise, every draft counts as accepted.
  const int64_t last = first + p.next_n - 1;
  if (slot >= 0 && row_window(p, last).size() > 0) {
    state_entry(p, slot, 0)[kStateAccepted] = p.next_n - 1;
  }
}

void answer_units(const Call& call, int64_t begin, int64_t end) {
  const FloatModeGuard float_mode;
  thread_local RowSelector selector;
  for (int64_t unit = begin; unit < end; ++unit) {
    if (call.params.state != nullptr) {
      answer_group(call, unit, selector);
    } else {
      selector.answer(call, unit);
      if (call.params.kv.out != nullptr) write_places(call.params, unit);
    }
  }
  selector.trim();
}

}  // namespace

void select_rows(const TopKParams& given, const Tuning& tuning, const Runtime& runtime) {
  TopKParams params = given;
  params.groups = params.rows / params.next_n;
  std::vector<int64_t> slots;
  if (params.state != nullptr && slots_may_repeat(params)) {
    slots = claim_slots(params);
    params.slots = slots.data();
    params.slots_int64 = params.slots_per_group = true;
  }
  const int64_t units = params.state != nullptr ? params.groups : params.rows;
  const bool idle_threads = units < runtime.threads;
  const int32_t slices = tuning.ctas_per_row > 0 ? tuning.ctas_per_row
                         : idle_threads          ? runtime.threads
                                                 : 1;
  const Call call{params, tuning, runtime, vector_ops(params.dtype, runtime.isa), slices};
  // Rows that are split leave no thread for each other; short rows on idle threads are not split.
  const bool split = slices > 1 && (tuning.ctas_per_row > 0 || params.n >= kGrainScores);
  if (split || units == 1 || runtime.threads == 1) return answer_units(call, 0, units);
  const int64_t unit_scores = std::max<int64_t>(1, params.rows / units * params.n);
  runtime.parallel_for(units, std::max<int64_t>(1, kGrainScores / unit_scores),
                       [&](int64_t begin, int64_t end) { answer_units(call, begin, end); });
}

}  // namespace gvr::cpu
