// SPDX-License-Identifier: Apache-2.0
// Reading scores: 16-byte loads wherever the address allows, single loads at the edges, never a
// byte outside [begin, end).
#pragma once

#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "../../common/order.h"
#include "scratch.cuh"

namespace gvr::cuda {

template <ScoreType kType>
struct Element {
  using Traits = ScoreTraits<kType>;
  using Storage = typename Traits::Storage;
  static constexpr int kPerVector = 16 / static_cast<int>(sizeof(Storage));

  static __device__ __forceinline__ float to_float(uint32_t raw) {
    if constexpr (kType == ScoreType::kFloat16) {
      return __half2float(__ushort_as_half(static_cast<unsigned short>(raw)));
    } else {
      return __uint_as_float(Traits::widen(raw));
    }
  }

  static __device__ __forceinline__ uint32_t key(uint32_t raw) {
    return ordered_key(__float_as_uint(to_float(raw)));
  }

  static __device__ __forceinline__ uint32_t load(const void* row, int64_t index) {
    return __ldg(static_cast<const Storage*>(row) + index);
  }

  // Element j of a loaded vector; j is a compile-time constant after unrolling.
  static __device__ __forceinline__ uint32_t pick(const uint4& v, int j) {
    if constexpr (sizeof(Storage) == 4) {
      return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w;
    } else {
      const uint32_t word = j < 2 ? v.x : j < 4 ? v.y : j < 6 ? v.z : v.w;
      return (j & 1) ? (word >> 16) : (word & 0xFFFFu);
    }
  }
};

// [begin, end) of a row cut at 16-byte boundaries of memory: `edge` scores before and after, whole
// vectors between. body is the index of the first whole vector's first score.
template <ScoreType kType>
struct VectorRange {
  using E = Element<kType>;
  int begin, body, vectors, end;

  // An empty or inverted range has no vectors and no edges.
  __device__ __forceinline__ VectorRange(const void* row, int first, int last)
      : begin(first), end(max(first, last)) {
    const auto address =
        reinterpret_cast<uintptr_t>(static_cast<const typename E::Storage*>(row) + first);
    const int misaligned = static_cast<int>((address & 15u) / sizeof(typename E::Storage));
    const int head = (E::kPerVector - misaligned) & (E::kPerVector - 1);
    body = begin + min(head, end - begin);
    vectors = static_cast<int>(static_cast<uint32_t>(end - body) / E::kPerVector);
  }

  __device__ __forceinline__ int edge_count() const {
    return (end - begin) - vectors * E::kPerVector;
  }
  // The i-th score outside the whole vectors.
  __device__ __forceinline__ int edge_index(int i) const {
    const int head = body - begin;
    return i < head ? begin + i : body + vectors * E::kPerVector + (i - head);
  }
  __device__ __forceinline__ const uint4* data(const void* row) const {
    return reinterpret_cast<const uint4*>(static_cast<const typename E::Storage*>(row) + body);
  }
};

// Up to kVectors vectors of one thread, kBlock vectors apart. The vectors that exist are a prefix.
template <ScoreType kType, int kBlock = Config::kThreads, int kVectors = Config::kUnroll>
struct Tile {
  using E = Element<kType>;
  static constexpr int kScores = kVectors * E::kPerVector;
  uint4 v[kVectors];
  int first;   // row index of the first vector's first score
  int scores;  // how many of the kScores positions exist

  // Vectors i, i + kBlock, ... of the range.
  __device__ __forceinline__ void load(const VectorRange<kType>& range, const uint4* data, int i) {
    first = range.body + i * E::kPerVector;
    scores = 0;
#pragma unroll
    for (int u = 0; u < kVectors; ++u) {
      const int at = i + u * kBlock;
      v[u] = make_uint4(0, 0, 0, 0);
      if (at < range.vectors) {
        v[u] = __ldg(data + at);
        scores = (u + 1) * E::kPerVector;
      }
    }
  }
  // The range's first tile, once load_ahead's copies have arrived.
  __device__ __forceinline__ void take_ahead(const VectorRange<kType>& range, uint32_t capacity) {
    __pipeline_wait_prior(0);
    first = range.body + static_cast<int>(threadIdx.x) * E::kPerVector;
    scores = 0;
#pragma unroll
    for (int u = 0; u < Config::kUnroll; ++u) {
      v[u] = shared_ahead(capacity, u);
      if (static_cast<int>(threadIdx.x + u * kBlock) < range.vectors) {
        scores = (u + 1) * E::kPerVector;
      }
    }
  }
  // Row index of position b = u * kPerVector + j.
  __device__ __forceinline__ int index(int b) const {
    return first + (b / E::kPerVector) * kBlock * E::kPerVector + b % E::kPerVector;
  }
};

// Sends for the first tile of [begin, end): asynchronous copies into this thread's own part of
// shared memory, which occupy no registers and need no barrier.
template <ScoreType kType>
__device__ __forceinline__ void load_ahead(const void* row, int begin, int end, uint32_t capacity) {
  const VectorRange<kType> range(row, begin, end);
  const uint4* data = range.data(row);
#pragma unroll
  for (int u = 0; u < Config::kUnroll; ++u) {
    const int at = static_cast<int>(threadIdx.x + u * Config::kThreads);
    if (at < range.vectors) {
      __pipeline_memcpy_async(&shared_ahead(capacity, u), data + at, sizeof(uint4));
    }
  }
  __pipeline_commit();
}

// Visit every score of [begin, end) once with all threads of the block. The visitor has
//   tile(tile): the existing positions of a tile;
//   one(raw, index): a single score.
// `ahead`: load_ahead has sent for the first tile already. The lanes of a warp stay together in the
// tiles. No barrier inside.
template <ScoreType kType, int kBlock = Config::kThreads, class Visitor>
__device__ __forceinline__ void visit_range(const void* row, int begin, int end, Visitor& visitor,
                                            uint32_t capacity = 0, bool ahead = false) {
  using E = Element<kType>;
  const VectorRange<kType> range(row, begin, end);
  const uint4* data = range.data(row);
  const int lane = threadIdx.x & 31;
  const int step = Config::kUnroll * kBlock;
  int i = threadIdx.x;
  if (i - lane < range.vectors) {
    Tile<kType, kBlock> tile;
    if (ahead) {
      tile.take_ahead(range, capacity);
    } else {
      tile.load(range, data, i);
    }
    bool more;
    do {
      i += step;
      more = i - lane < range.vectors;
      Tile<kType, kBlock> next;  // in flight while this one is looked at
      if (more) next.load(range, data, i);
      visitor.tile(tile);
      tile = next;
    } while (more);
  }
  if (static_cast<int>(threadIdx.x) < range.edge_count()) {
    const int index = range.edge_index(threadIdx.x);
    visitor.one(E::load(row, index), index);
  }
}

}  // namespace gvr::cuda
