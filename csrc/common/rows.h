// SPDX-License-Identifier: Apache-2.0
// What a row's number leads to: its request, its window of valid scores, its hint and state entry,
// and where its keys lie in the KV cache. Everything read here is data of the caller: no value of
// it can lead outside a row, the state or a page table.
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

GVR_HOST_DEVICE int64_t row_group(const TopKParams& p, int64_t row) {
  return p.next_n == 1 ? row : row / p.next_n;  // spares the usual call a 64-bit division
}

// Request of a group, or -1 where the caller's map leads to none.
GVR_HOST_DEVICE int64_t group_request(const TopKParams& p, int64_t group) {
  if (p.row_to_request == nullptr) return group;
  const int64_t request = load_count(p.row_to_request, p.row_to_request_int64, group);
  return request >= 0 && request < p.requests ? request : -1;
}

GVR_HOST_DEVICE int32_t row_draft(const TopKParams& p, int64_t row) {
  return p.next_n == 1 ? 0 : static_cast<int32_t>(row % p.next_n);
}

// A request of length L ends its rows at (L - next_n + row % next_n + 1) / compress_ratio, clamped
// to [0, n]; a length <= 0 empties every row of the request. `starts` cuts off the scores before
// it. All arithmetic is 64-bit and clamped.
GVR_HOST_DEVICE RowWindow row_window(const TopKParams& p, int64_t row) {
  int64_t entry = row_group(p, row);
  if (p.row_to_request != nullptr) {
    const int64_t request = group_request(p, entry);
    if (request < 0) return {0, 0};
    if (!p.windows_per_group) entry = request;
  }
  int64_t end = p.n;
  if (p.lengths != nullptr) {
    const int64_t length = load_count(p.lengths, p.lengths_int64, entry);
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
    begin = load_count(p.starts, p.starts_int64, entry);
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

// Slot of a group, or -1 when its rows must leave the state alone (slot out of range or < 0).
GVR_HOST_DEVICE int64_t group_slot(const TopKParams& p, int64_t group) {
  if (p.state == nullptr) return -1;
  const int64_t entry = p.slots_per_group ? group : group_request(p, group);
  if (entry < 0) return -1;
  const int64_t slot = p.slots == nullptr ? entry : load_count(p.slots, p.slots_int64, entry);
  return slot >= 0 && slot < p.state_slots ? slot : -1;
}

GVR_HOST_DEVICE int64_t row_slot(const TopKParams& p, int64_t row) {
  return group_slot(p, row_group(p, row));
}

// Whether groups can share a slot at all. Where they do, the slot belongs to the last of them that
// has a valid score: the others neither read nor write it.
GVR_HOST_DEVICE bool slots_may_repeat(const TopKParams& p) {
  return p.groups > 1 && (p.slots != nullptr || p.row_to_request != nullptr);
}

// Whether a later group takes the slot from the groups before it. The last row of a group has a
// valid score when any of them has.
GVR_HOST_DEVICE bool group_takes_slot(const TopKParams& p, int64_t group, int64_t slot) {
  return group_slot(p, group) == slot && row_window(p, (group + 1) * p.next_n - 1).size() > 0;
}

// A state that holds fewer hints than there are winners keeps those at even distances: hint j is
// the winner at output position ceil(j * k / hints), up to k = 2^16, and about there beyond. The
// step is hints / k in units of 2^-32; 0: every position is kept, as far as there is room.
inline uint32_t make_hint_step(int32_t hints, int32_t k) {
  return hints >= k ? 0u
                    : static_cast<uint32_t>(((static_cast<uint64_t>(hints) << 32) + k - 1) / k);
}

GVR_HOST_DEVICE uint32_t scaled_position(uint32_t position, uint32_t step) {
  return static_cast<uint32_t>((static_cast<uint64_t>(position) * step) >> 32);
}

// Which hint of a state entry the winner at an output position becomes; -1: none.
GVR_HOST_DEVICE int32_t hint_at(const TopKParams& p, uint32_t position) {
  uint32_t at = position;
  if (p.hint_step != 0) {
    at = scaled_position(position, p.hint_step);
    if (position != 0 && scaled_position(position - 1, p.hint_step) == at) return -1;
  }
  return at < static_cast<uint32_t>(p.state_hints) ? static_cast<int32_t>(at) : -1;
}

// How many hints an answer of `winners` > 0 indices leaves.
GVR_HOST_DEVICE int32_t hint_count(const TopKParams& p, int32_t winners) {
  const auto last = static_cast<uint32_t>(winners - 1);
  const uint32_t count = (p.hint_step == 0 ? last : scaled_position(last, p.hint_step)) + 1;
  return count < static_cast<uint32_t>(p.state_hints) ? static_cast<int32_t>(count) : p.state_hints;
}

// The stored answer of the draft that the slot's last commit accepted.
GVR_HOST_DEVICE HintRow slot_hint(const TopKParams& p, int64_t slot) {
  const int32_t* first = state_entry(p, slot, 0);
  int32_t accepted = first[kStateAccepted];
  if (accepted < 0 || accepted >= p.state_depth) accepted = 0;
  const int32_t* entry = state_entry(p, slot, accepted);
  int32_t count = entry[kStateCount];
  if (count < 0) count = 0;
  if (count > p.state_hints) count = p.state_hints;
  return {entry + kStateHeader, count};
}

GVR_HOST_DEVICE HintRow row_hint(const TopKParams& p, int64_t row) {
  if (p.hint != nullptr) {
    const int64_t hint_row = p.rows_per_hint == 1 ? row : row / p.rows_per_hint;
    return {p.hint + hint_row * p.hint_stride, p.hint_size};
  }
  const int64_t slot = row_slot(p, row);
  if (slot < 0) return {nullptr, 0};
  return slot_hint(p, slot);
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

// A stored position in this step's numbering, -1 where it has none.
GVR_HOST_DEVICE int32_t stored_position(int32_t stored, int64_t offset) {
  return hinted_position(stored, offset, RowWindow{0, 0x7FFFFFFF});
}

// Where the keys of one row lie in the KV cache.
struct RowPlaces {
  const int32_t* pages;  // null: no paging
  int64_t count;
  int64_t offset;
  int32_t bits;
};

GVR_HOST_DEVICE RowPlaces row_places(const TopKParams& p, int64_t row) {
  const KvPlacement& kv = p.kv;
  RowPlaces places{nullptr, 0, 0, kv.page_bits};
  const int64_t request = group_request(p, row_group(p, row));
  if (request < 0) return places;  // an empty row: nothing is placed
  if (kv.offsets != nullptr) {
    // Clamped to what leads nowhere anyway, so that the sum below cannot overflow.
    constexpr int64_t kFar = int64_t{1} << 62;
    const int64_t offset = load_count(kv.offsets, kv.offsets_int64, request);
    places.offset = offset > kFar ? kFar : (offset < -kFar ? -kFar : offset);
  }
  if (kv.page_table != nullptr) {
    places.pages = kv.page_table + request * kv.page_table_stride;
    places.count = kv.pages;
  }
  return places;
}

// Index of a selected key in the KV cache; -1 where it has no place: a position before 0 or beyond
// the page table, a negative page, or a result that int32 does not hold.
GVR_HOST_DEVICE int32_t place_of(const RowPlaces& places, int32_t index) {
  int64_t at = index < 0 ? -1 : places.offset + index;
  if (places.pages != nullptr) {
    // One load and no branch around its use, so that a GPU keeps several in flight.
    const int64_t page = at >> places.bits;
    const int64_t number = at >= 0 && page < places.count ? places.pages[page] : -1;
    const int64_t within = at & ((int64_t{1} << places.bits) - 1);
    at = number < 0 ? -1 : (number << places.bits) + within;
  }
  return at >= 0 && at <= 0x7FFFFFFF ? static_cast<int32_t>(at) : -1;
}

}  // namespace gvr
