// SPDX-License-Identifier: Apache-2.0
// Which scores of a row are valid: row -> [begin, end).
#pragma once

#include <cstdint>

#include "order.h"
#include "params.h"

namespace gvr {

struct RowWindow {
  int32_t begin;
  int32_t end;  // begin == end: the row has no valid score
  GVR_HOST_DEVICE int32_t size() const { return end - begin; }
};

GVR_HOST_DEVICE int64_t load_count(const void* data, bool is_int64, int64_t i) {
  return is_int64 ? static_cast<const int64_t*>(data)[i]
                  : static_cast<int64_t>(static_cast<const int32_t*>(data)[i]);
}

GVR_HOST_DEVICE int64_t row_request(const TopKParams& p, int64_t row) {
  return p.next_n == 1 ? row : row / p.next_n;  // spares the usual call a 64-bit division
}

GVR_HOST_DEVICE int32_t row_draft(const TopKParams& p, int64_t row) {
  return p.next_n == 1 ? 0 : static_cast<int32_t>(row % p.next_n);
}

// Row `row` belongs to request row / next_n. A request of length L ends its rows at
// (L - next_n + row % next_n + 1) / compress_ratio, clamped to [0, n]; a length <= 0 empties every
// row of the request. `starts` cuts off the scores before it. All arithmetic is 64-bit and clamped:
// lengths and starts are data, no value of theirs can reach outside the row.
GVR_HOST_DEVICE RowWindow row_window(const TopKParams& p, int64_t row) {
  const int64_t request = row_request(p, row);
  int64_t end = p.n;
  if (p.lengths != nullptr) {
    const int64_t length = load_count(p.lengths, p.lengths_int64, request);
    // A length beyond any row clamps early, so that the sum below cannot overflow.
    const int64_t longest = static_cast<int64_t>(p.n) * p.compress_ratio + p.next_n;
    const int64_t bounded = length > longest ? longest : length;
    end = bounded <= 0 ? 0 : bounded - p.next_n + row_draft(p, row) + 1;
    if (end < 0) end = 0;
    if (p.compress_ratio != 1) end /= p.compress_ratio;
    if (end > p.n) end = p.n;
  }
  int64_t begin = 0;
  if (p.starts != nullptr) {
    begin = load_count(p.starts, p.starts_int64, request);
    if (begin < 0) begin = 0;
    if (begin > end) begin = end;
  }
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

// The stored answer of one request that serves as this step's hint, or the given hint row.
struct HintRow {
  const int32_t* indices;  // null: no hint
  int32_t size;
};

// Where a row's new answer is stored. `entry` null: the row has no slot.
struct StateEntry {
  int32_t* entry;  // header (kStateHeader words), then the hinted indices
};

GVR_HOST_DEVICE int32_t* state_entry(const TopKParams& p, int64_t slot, int64_t draft) {
  const int64_t width = static_cast<int64_t>(kStateHeader) + p.state_hints;
  return p.state + (slot * p.state_depth + draft) * width;
}

// Slot of a row, or -1 when the row must leave the state alone (slot out of range or < 0).
GVR_HOST_DEVICE int64_t row_slot(const TopKParams& p, int64_t row) {
  if (p.state == nullptr) return -1;
  const int64_t request = row_request(p, row);
  const int64_t slot = p.slots == nullptr ? request : load_count(p.slots, p.slots_int64, request);
  return slot >= 0 && slot < p.state_slots ? slot : -1;
}

GVR_HOST_DEVICE HintRow row_hint(const TopKParams& p, int64_t row) {
  if (p.hint != nullptr) {
    const int64_t hint_row = p.rows_per_hint == 1 ? row : row / p.rows_per_hint;
    return {p.hint + hint_row * p.hint_stride, p.hint_size};
  }
  const int64_t slot = row_slot(p, row);
  if (slot < 0) return {nullptr, 0};
  const int32_t* first = state_entry(p, slot, 0);
  int32_t accepted = first[kStateAccepted];
  if (accepted < 0 || accepted >= p.state_depth) accepted = 0;
  const int32_t* entry = state_entry(p, slot, accepted);
  int32_t count = entry[kStateCount];
  if (count < 0) count = 0;
  if (count > p.state_hints) count = p.state_hints;
  return {entry + kStateHeader, count};
}

GVR_HOST_DEVICE StateEntry row_state(const TopKParams& p, int64_t row) {
  const int64_t slot = row_slot(p, row);
  return {slot < 0 ? nullptr : state_entry(p, slot, row_draft(p, row))};
}

// A hinted position that may be looked at: inside the window after the caller's offset.
// Returns -1 for every other value.
GVR_HOST_DEVICE int32_t hinted_position(int32_t hinted, int64_t offset, RowWindow window) {
  const int64_t position = static_cast<int64_t>(hinted) + offset;
  return hinted >= 0 && position >= window.begin && position < window.end
             ? static_cast<int32_t>(position)
             : -1;
}

}  // namespace gvr
