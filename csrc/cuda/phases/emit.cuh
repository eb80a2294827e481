// SPDX-License-Identifier: Apache-2.0
// Emit: where an answer goes. Outputs that the caller did not ask for cost one uniform branch.
#pragma once

#include <cstdint>

#include "../../common/rows.h"
#include "slice.cuh"

namespace gvr::cuda {

// Header of a state entry after a step. A row without winners leaves the state alone. The request's
// last draft is the one whose answer serves as the next hint, until commit() says otherwise.
__device__ __forceinline__ void write_state_header(const TopKParams& p, int64_t row, int32_t* entry,
                                                   int32_t winners, uint32_t kth_key,
                                                   int32_t hits) {
  if (entry == nullptr || winners == 0) return;
  entry[kStateCount] = min(winners, p.state_hints);
  entry[kStateThreshold] = static_cast<int32_t>(float_bits(key_to_float(kth_key)));
  entry[kStateHits] = hits;
  const int32_t draft = row_draft(p, row);
  if (draft == p.next_n - 1) state_entry(p, row_slot(p, row), 0)[kStateAccepted] = draft;
}

template <ScoreType kType>
struct RowOutput {
  using E = Element<kType>;
  using Storage = typename E::Storage;

  int32_t* indices;
  Storage* values;  // null: not wanted
  int32_t* entry;   // state entry that gets the new hint; null: none
  int32_t hints;    // how many indices the entry holds

  // Telemetry needs the old hint after the selection, so the telemetry kernel then writes the
  // state.
  __device__ RowOutput(const TopKParams& p, int64_t row)
      : indices(p.indices + row * p.indices_stride),
        values(p.values == nullptr ? nullptr
                                   : static_cast<Storage*>(p.values) + row * p.values_stride),
        entry(p.stats == nullptr ? row_state(p, row).entry : nullptr),
        hints(p.state_hints) {}

  __device__ __forceinline__ void put(uint32_t position, uint32_t raw, int32_t index) const {
    indices[position] = index;
    if (values != nullptr) values[position] = static_cast<Storage>(raw);
    if (entry != nullptr && position < static_cast<uint32_t>(hints)) {
      entry[kStateHeader + position] = index;
    }
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

// n <= K: every valid index in ascending order, then padding. No selection, no hint, no barrier.
template <ScoreType kType>
__device__ __noinline__ void emit_short_row(const TopKParams& p, int64_t row_index, const void* row,
                                            RowWindow window, int part, int parts) {
  using E = Element<kType>;
  const RowOutput<kType> output(p, row_index);
  const int n = window.size();
  const int threads = blockDim.x;
  for (int64_t i = int64_t{part} * threads + threadIdx.x; i < p.k; i += int64_t{parts} * threads) {
    if (i < n) {
      const int index = window.begin + static_cast<int>(i);
      output.put(static_cast<uint32_t>(i), output.values == nullptr ? 0u : E::load(row, index),
                 index);
    } else {
      output.put_padding(static_cast<uint32_t>(i));
    }
  }
  if (part == 0 && threadIdx.x == 0) {
    write_state_header(p, row_index, output.entry, n, kKeyMinusInf, -1);
    put_stats(p, row_index, n > 0 ? Path::kShort : Path::kEmpty, 0, 0, 0, 0, 0);
  }
}

}  // namespace gvr::cuda
