// SPDX-License-Identifier: Apache-2.0
#include "select.h"

#include <algorithm>

#include "../common/rows.h"
#include "row.h"

namespace gvr::cpu {
namespace {

constexpr int64_t kGrainScores = 32768;  // worth a task of their own

// Rows of one request share a hint in the state, and one of them overwrites it: that one comes
// last, so that every row sees the hint of the previous step.
void answer_request(const Call& call, int64_t request, RowSelector& selector) {
  const TopKParams& p = call.params;
  const int64_t first = request * p.next_n;
  const int64_t slot = row_slot(p, first);
  int32_t accepted = slot < 0 ? 0 : state_entry(p, slot, 0)[kStateAccepted];
  if (accepted < 0 || accepted >= p.state_depth) accepted = 0;
  for (int64_t i = 1; i <= p.next_n; ++i) {
    selector.answer(call, first + (accepted + i) % p.next_n);
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
      answer_request(call, unit, selector);
    } else {
      selector.answer(call, unit);
    }
  }
  selector.trim();
}

}  // namespace

void select_rows(const TopKParams& params, const Tuning& tuning, const Runtime& runtime) {
  const int64_t units = params.state != nullptr ? params.rows / params.next_n : params.rows;
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
