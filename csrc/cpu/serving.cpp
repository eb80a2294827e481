// SPDX-License-Identifier: Apache-2.0
#include "serving.h"

#include <algorithm>
#include <unordered_set>

#include "../common/rows.h"

namespace gvr::cpu {
namespace {

bool contains(const std::vector<int32_t>& ascending, int32_t value) {
  return std::binary_search(ascending.begin(), ascending.end(), value);
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
  std::sort(previous.begin(), previous.end());
}

void write_difference(const TopKParams& p, int64_t row, const std::vector<int32_t>& previous) {
  const int32_t* indices = p.indices + row * p.indices_stride;
  int32_t* entered = p.difference.entered + row * p.k;
  int32_t* left = p.difference.left + row * p.k;
  std::fill_n(entered, p.k, -1);
  std::fill_n(left, p.k, -1);
  int32_t entering = 0, leaving = 0;
  const int32_t winners = std::min(p.k, row_window(p, row).size());
  if (winners > 0) {
    std::vector<int32_t> selected(indices, indices + winners);
    std::sort(selected.begin(), selected.end());
    for (int32_t i = 0; i < winners; ++i) {
      if (!contains(previous, indices[i])) entered[entering++] = indices[i];
    }
    for (const int32_t position : previous) {
      if (!contains(selected, position) && leaving < p.k) left[leaving++] = position;
    }
  }
  p.difference.counts[2 * row] = entering;
  p.difference.counts[2 * row + 1] = leaving;
}

}  // namespace gvr::cpu
