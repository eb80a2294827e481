// SPDX-License-Identifier: Apache-2.0
// Emit: where an answer goes. Outputs that the caller did not ask for cost one uniform branch.
//
// A kernel calls, in this order: begin_entry at its first barrier (the state entry that the answer
// goes to), RowOutput::put for every winner, write_state_header from one thread, and finish_row
// when a barrier has made every put of the row visible to the calling CTA. `threads` of the block
// take part: after a fall back they are fewer than were launched.
#pragma once

#include <cstdint>

#include "../../common/rows.h"
#include "difference.cuh"
#include "slice.cuh"

namespace gvr::cuda {

// The slot that a group of rows may read and write, -1: none. Where groups of one call share a
// slot, only the last that has a valid score gets it (slots_may_repeat in rows.h), so that one row
// alone writes an entry. Block-wide, one barrier; one load per thread in a batch of ordinary size.
inline __device__ __noinline__ int64_t claim_slot(const TopKParams& p, int64_t group, int threads) {
  const int64_t slot = group_slot(p, group);
  bool taken = false;
  if (slot >= 0 && slots_may_repeat(p)) {
    for (int64_t later = group + 1 + threadIdx.x; later < p.groups && !taken; later += threads) {
      taken = group_takes_slot(p, later, slot);
    }
  }
  return __syncthreads_or(taken) ? -1 : slot;
}

// The state entry that this row's answer goes to, null: none. Block-wide, exactly one barrier, and
// the place for it is the row's first one: other threads wait there for the window. Comparing needs
// the old entries after the selection: then finish_difference or compare_kernel writes the state.
__device__ __forceinline__ int32_t* begin_entry(const TopKParams& p, int64_t row, int threads) {
  if (p.state == nullptr || p.stats != nullptr || p.difference.counts != nullptr) {
    __syncthreads();
    return nullptr;
  }
  int64_t slot = row_group(p, row);
  if (p.slots == nullptr && p.row_to_request == nullptr) {  // no data, and nobody to share with
    __syncthreads();
    if (slot >= p.state_slots) slot = -1;
  } else {
    slot = claim_slot(p, slot, threads);
  }
  return slot < 0 ? nullptr : state_entry(p, slot, row_draft(p, row));
}

__device__ __forceinline__ void write_state_score(int32_t* entry, uint32_t kth_key, int32_t hits) {
  entry[kStateThreshold] = static_cast<int32_t>(float_bits(key_to_float(kth_key)));
  entry[kStateHits] = hits;
}

// The request's last draft is the one whose answer serves as the next hint, until commit() says
// otherwise.
__device__ __forceinline__ void write_state_count(const TopKParams& p, int64_t row, int32_t* entry,
                                                  int32_t winners) {
  entry[kStateCount] = hint_count(p, winners);
  const int32_t draft = row_draft(p, row);
  if (draft != p.next_n - 1) return;
  int32_t* first = entry - int64_t{draft} * (kStateHeader + p.state_hints);  // draft 0 of the slot
  first[kStateAccepted] = draft;
}

// Header of a state entry after a step. A row without winners leaves the state alone.
__device__ __forceinline__ void write_state_header(const TopKParams& p, int64_t row, int32_t* entry,
                                                   int32_t winners, uint32_t kth_key,
                                                   int32_t hits) {
  if (winners == 0) return;
  write_state_score(entry, kth_key, hits);
  write_state_count(p, row, entry, winners);
}

// The winner at an output position, as a hint for the next step.
__device__ __forceinline__ void store_hint(const TopKParams& p, int32_t* entry, uint32_t position,
                                           int32_t index) {
  const int32_t at = hint_at(p, position);
  if (at >= 0) entry[kStateHeader + at] = index;
}

template <ScoreType kType>
struct RowOutput {
  using E = Element<kType>;
  using Storage = typename E::Storage;

  const TopKParams& params;
  int32_t* indices;
  Storage* values;  // null: not wanted
  int32_t* entry;   // state entry that gets the new hint; null: none

  __device__ __forceinline__ RowOutput(const TopKParams& p, int64_t row, int32_t* state_entry)
      : params(p),
        indices(p.indices + row * p.indices_stride),
        values(p.values == nullptr ? nullptr
                                   : static_cast<Storage*>(p.values) + row * p.values_stride),
        entry(state_entry) {}

  __device__ __forceinline__ void put(uint32_t position, uint32_t raw, int32_t index) const {
    indices[position] = index;
    if (values != nullptr) put_value(position, raw);
    if (entry != nullptr) put_hint(position, index);
  }
  __device__ __forceinline__ void put_value(uint32_t position, uint32_t raw) const {
    values[position] = static_cast<Storage>(raw);
  }
  __device__ __forceinline__ void put_hint(uint32_t position, int32_t index) const {
    store_hint(params, entry, position, index);
  }

  __device__ __forceinline__ void put_padding(uint32_t position) const {
    indices[position] = -1;
    if (values != nullptr) values[position] = static_cast<Storage>(E::Traits::kMinusInf);
  }
};

__device__ __forceinline__ void put_stats(const TopKParams& p, int64_t row, Path path, int passes,
                                          uint32_t survivors, uint32_t overflows, int undershoots,
                                          int rounds) {
  if (p.stats == nullptr) return;
  int32_t* s = p.stats + row * kStatColumns;
  s[kStatPath] = static_cast<int32_t>(path);
  s[kStatPasses] = passes;
  s[kStatSurvivors] = static_cast<int32_t>(survivors);
  s[kStatOverflows] = static_cast<int32_t>(overflows);
  s[kStatUndershoots] = undershoots;
  s[kStatRefineRounds] = rounds;
}

// Places of a row's selected keys in the KV cache, from its finished indices: the loads of a batch
// are independent of each other, which they would not be in put().
inline __device__ __noinline__ void emit_places(const TopKParams& p, int64_t row, int threads) {
  const int32_t* indices = p.indices + row * p.indices_stride;
  int32_t* out = p.kv.out + row * p.kv.out_stride;
  const RowPlaces places = row_places(p, row);
  constexpr int kBatch = 8;
  for (int64_t first = threadIdx.x; first < p.k; first += int64_t{kBatch} * threads) {
    int32_t at[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = first + int64_t{b} * threads;
      at[b] = i < p.k ? indices[i] : -1;
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) at[b] = place_of(places, at[b]);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t i = first + int64_t{b} * threads;
      if (i < p.k) out[i] = at[b];
    }
  }
}

// The row's difference to the stored answer, which the last row of a group replaces. Takes all
// shared memory. Block-wide, by one CTA of the row.
template <ScoreType kType>
__device__ __noinline__ void finish_difference(const TopKParams& p, int64_t row, int threads) {
  auto& scratch = *reinterpret_cast<DifferenceScratch*>(g_shared);
  const int64_t group = row_group(p, row);
  const int64_t slot = claim_slot(p, group, threads);
  const HintRow previous = slot < 0 ? HintRow{nullptr, 0} : slot_hint(p, slot);
  const Positions selected = selected_positions(p, row);
  write_difference(p, row, selected, previous, threads);
  if (slot < 0) return;
  // As everywhere, a short row has no k-th score.
  uint32_t kth_key = kKeyMinusInf;
  if (selected.first < 0) kth_key = least_key<kType>(p, row, selected, scratch, threads);
  if (threadIdx.x == 0 && selected.size > 0) {
    write_state_score(state_entry(p, slot, row_draft(p, row)), kth_key, -1);
  }
  if (!last_of_group(p, slot, scratch)) return;
#pragma unroll 1
  for (int64_t each = group * p.next_n; each < (group + 1) * p.next_n; ++each) {
    const Positions answer = selected_positions(p, each);
    int32_t* entry = state_entry(p, slot, row_draft(p, each));
    constexpr int kBatch = 8;  // loads in flight
#pragma unroll 1
    for (int first = threadIdx.x; first < answer.size; first += kBatch * threads) {
      int32_t index[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * threads;
        index[j] = answer(i < answer.size ? i : first);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * threads;
        if (i < answer.size) store_hint(p, entry, static_cast<uint32_t>(i), index[j]);
      }
    }
    if (threadIdx.x == 0 && answer.size > 0) write_state_count(p, each, entry, answer.size);
  }
}

// Whether a row has a finish, for which every put of the row must be visible to one CTA.
__device__ __forceinline__ bool wants_finish(const TopKParams& p) {
  return p.kv.out != nullptr || p.difference.entered != nullptr;
}

// Block-wide, the end of a row that was selected: by one CTA, after a barrier (of the cluster,
// where the row has one) behind the row's last put but for the caller's own.
template <ScoreType kType>
__device__ __forceinline__ void finish_row(const TopKParams& p, int64_t row, int threads) {
  if (!wants_finish(p)) return;
  __syncthreads();
  if (p.kv.out != nullptr) emit_places(p, row, threads);
  if (p.difference.entered != nullptr) finish_difference<kType>(p, row, threads);
}

// n <= K: every valid index in ascending order, then padding. No selection, no hint, no barrier.
// `entry` is begin_entry's.
template <ScoreType kType>
__device__ __noinline__ void emit_short_row(const TopKParams& p, int64_t row_index, const void* row,
                                            RowWindow window, int part, int parts, int32_t* entry) {
  using E = Element<kType>;
  const RowOutput<kType> output(p, row_index, entry);
  const bool placed = p.kv.out != nullptr;
  int32_t* out = placed ? p.kv.out + row_index * p.kv.out_stride : nullptr;
  const RowPlaces places = placed ? row_places(p, row_index) : RowPlaces{};
  const int n = window.size();
  const int threads = blockDim.x;
  for (int64_t i = int64_t{part} * threads + threadIdx.x; i < p.k; i += int64_t{parts} * threads) {
    if (i < n) {
      const int index = window.begin + static_cast<int>(i);
      output.put(static_cast<uint32_t>(i), output.values == nullptr ? 0u : E::load(row, index),
                 index);
      if (placed) out[i] = place_of(places, index);
    } else {
      output.put_padding(static_cast<uint32_t>(i));
      if (placed) out[i] = -1;
    }
  }
  if (part == 0 && threadIdx.x == 0) {
    if (output.entry != nullptr) {
      write_state_header(p, row_index, output.entry, n, kKeyMinusInf, -1);
    }
    put_stats(p, row_index, n > 0 ? Path::kShort : Path::kEmpty, 0, 0, 0, 0, 0);
  }
  if (part == 0 && p.difference.entered != nullptr) {
    finish_difference<kType>(p, row_index, threads);
  }
}

}  // namespace gvr::cuda
