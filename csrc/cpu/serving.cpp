// SPDX-License-Identifier: Apache-2.0
#include "serving.h"

#include <algorithm>
#include <unordered_set>

#include "../common/rows.h"

namespace gvr::cpu {
namespace {

// Answers are ascending already unless they were to be sorted by score.
void make_ascending(std::vector<int32_t>& positions) {
  if (!std::is_sorted(positions.begin(), positions.end())) {
    std::sort(positions.begin(), positions.end());
  }
}

// out: what a has and b lacks, both ascending and distinct; then -1 up to k. Returns how many.
int32_t write_missing(const std::vector<int32_t>& a, const std::vector<int32_t>& b, int32_t* out,
                      int32_t k) {
  int32_t* end = std::set_difference(a.begin(), a.end(), b.begin(), b.end(), out);
  std::fill(end, out + k, -1);
  return static_cast<int32_t>(end - out);
}

}  // namespace

std::vector<int64_t> claim_slots(const TopKParams& p) {
  std::vector<int64_t> slots(p.groups);
  std::unordered_set<int64_t> taken;
  for (int64_t group = p.groups - 1; group >= 0; --group) {
    const int64_t slot = group_slot(p, group);
    const bool takes = slot >= 0 && group_takes_slot(p, group, slot) && taken.insert(slot).second;
    slots[group] = takes ? slot : -1;
  }
  return slots;
}

void write_places(const TopKParams& p, int64_t row) {
  const int32_t* indices = p.indices + row * p.indices_stride;
  int32_t* out = p.kv.out + row * p.kv.out_stride;
  const RowPlaces places = row_places(p, row);
  for (int32_t i = 0; i < p.k; ++i) out[i] = place_of(places, indices[i]);
}

void read_previous(const TopKParams& p, int64_t slot, std::vector<int32_t>& previous) {
  previous.clear();
  if (slot < 0) return;
  const HintRow hint = slot_hint(p, slot);
  for (int32_t i = 0; i < hint.size; ++i) {
    const int32_t position = stored_position(hint.indices[i], p.hint_offset);
    if (position >= 0) previous.push_back(position);
  }
  make_ascending(previous);
  previous.erase(std::unique(previous.begin(), previous.end()), previous.end());
}

void write_difference(const TopKParams& p, int64_t row, const std::vector<int32_t>& previous) {
  const int32_t* indices = p.indices + row * p.indices_stride;
  const int32_t winners = std::min(p.k, row_window(p, row).size());
  std::vector<int32_t> selected(indices, indices + winners);
  make_ascending(selected);
  // A row without a valid score reads nothing.
  const std::vector<int32_t>& stored = winners > 0 ? previous : selected;
  int32_t* counts = p.difference.counts + 2 * row;
  counts[0] = write_missing(selected, stored, p.difference.entered + row * p.k, p.k);
  counts[1] = write_missing(stored, selected, p.difference.left + row * p.k, p.k);
}

}  // namespace gvr::cpu
