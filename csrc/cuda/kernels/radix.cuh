// SPDX-License-Identifier: Apache-2.0
// Hint-free radix select, the baseline and the answer for a K that no staging area holds: histogram
// passes over the digits of the rank key, one block per row, constant shared memory, any K.
// The rank key ends in the index, so ties need no pass of their own: digits of the index follow
// digits of the score only where the K-th place falls into a plateau.
#pragma once

#include "../phases/emit.cuh"
#include "../phases/scratch.cuh"

namespace gvr::cuda {

struct RadixScratch {
  uint32_t bins[1 << Config::kRadixBits];
  uint32_t warp_sums[Config::kRadixThreads / 32];
  uint32_t bin, above, inside;
  uint32_t emitted;
  uint32_t kth_key;  // ordered key of the K-th score
  int32_t* entry;    // begin_entry's
};

template <ScoreType kType>
using RadixTile = Tile<kType, Config::kRadixThreads>;

// Counts the rank keys that share `prefix` above `shift + bits` by their next digit.
template <ScoreType kType>
struct DigitVisitor {
  using E = Element<kType>;
  uint32_t* bins;
  uint64_t prefix;
  int shift, bits;

  __device__ __forceinline__ void one(uint32_t raw, int index) {
    const uint64_t rank = rank_key(E::key(raw), index);
    const int top = shift + bits;
    if (top < 64 && (rank ^ prefix) >> top != 0) return;
    atomicAdd(&bins[(rank >> shift) & ((1u << bits) - 1u)], 1u);
  }
  __device__ __forceinline__ void tile(const RadixTile<kType>& t) {
#pragma unroll
    for (int b = 0; b < RadixTile<kType>::kScores; ++b) {
      if (b < t.scores) one(E::pick(t.v[b / E::kPerVector], b % E::kPerVector), t.index(b));
    }
  }
};

template <ScoreType kType>
struct EmitVisitor {
  using E = Element<kType>;
  const RowOutput<kType>& output;
  uint32_t* emitted;
  uint64_t least;
  uint32_t kth_key;  // least key that this thread wrote

  __device__ __forceinline__ void one(uint32_t raw, int index) {
    const uint32_t key = E::key(raw);
    if (rank_key(key, index) < least) return;
    output.put(atomicAdd(emitted, 1u), raw, index);
    kth_key = min(kth_key, key);
  }
  __device__ __forceinline__ void tile(const RadixTile<kType>& t) {
#pragma unroll
    for (int b = 0; b < RadixTile<kType>::kScores; ++b) {
      if (b < t.scores) one(E::pick(t.v[b / E::kPerVector], b % E::kPerVector), t.index(b));
    }
  }
};

// The digit, from the best down, that holds the wanted-th entry. Every thread owns two bins.
__device__ __forceinline__ void find_digit(RadixScratch& scratch, int digits, uint32_t wanted) {
  constexpr int kPerThread = (1 << Config::kRadixBits) / Config::kRadixThreads;
  uint32_t here[kPerThread];
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int bin = digits - 1 - (static_cast<int>(threadIdx.x) * kPerThread + i);
    here[i] = bin >= 0 ? scratch.bins[bin] : 0u;
    mine += here[i];
  }
  uint32_t inclusive = mine;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, inclusive, d);
    if (lane_id() >= d) inclusive += other;
  }
  if (lane_id() == 31) scratch.warp_sums[warp_id()] = inclusive;
  __syncthreads();
  uint32_t before = inclusive - mine;
  for (int w = 0; w < warp_id(); ++w) before += scratch.warp_sums[w];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (before < wanted && wanted <= before + here[i]) {
      scratch.bin = digits - 1 - (threadIdx.x * kPerThread + i);
      scratch.above = before;
      scratch.inside = here[i];
    }
    before += here[i];
  }
  __syncthreads();
}

template <ScoreType kType>
__global__ void __launch_bounds__(Config::kRadixThreads, 1)
    radix_kernel(const __grid_constant__ TopKParams p) {
  using E = Element<kType>;
  __shared__ RadixScratch scratch;
  const int64_t row_index = blockIdx.x;
  const void* row = static_cast<const typename E::Storage*>(p.scores) + row_index * p.score_stride;
  const RowWindow window = row_window(p, row_index);
  int32_t* entry = begin_entry(p, row_index, Config::kRadixThreads);
  if (window.size() <= p.k) {
    emit_short_row<kType>(p, row_index, row, window, 0, 1, entry);
    return;
  }
  if (threadIdx.x == 0) {
    scratch.entry = entry;
    scratch.emitted = 0;
    scratch.kth_key = kKeyNan;
  }

  const int index_bits = 32 - __clz(p.n - 1);  // inverted indices differ in these bits only
  uint64_t prefix = 0;
  uint32_t wanted = p.k, inside = 0xFFFFFFFFu;
  int shift = 64, rounds = 0;
  while (inside != wanted) {
    if (shift == 32) {
      prefix |= (0xFFFFFFFFull >> index_bits) << index_bits;
      shift = index_bits;
    }
    // Digits of the score end at bit 32, so that a row without a tie at K never reads further.
    const int left = shift > 32 ? shift - 32 : shift;
    const int bits = min(left, Config::kRadixBits);
    shift -= bits;
    for (int b = threadIdx.x; b < (1 << Config::kRadixBits); b += blockDim.x) scratch.bins[b] = 0;
    __syncthreads();
    DigitVisitor<kType> visitor{scratch.bins, prefix, shift, bits};
    visit_range<kType, Config::kRadixThreads>(row, window.begin, window.end, visitor);
    __syncthreads();
    find_digit(scratch, 1 << bits, wanted);
    prefix |= static_cast<uint64_t>(scratch.bin) << shift;
    wanted -= scratch.above;
    inside = scratch.inside;
    ++rounds;
  }
  const RowOutput<kType> output(p, row_index, scratch.entry);
  EmitVisitor<kType> visitor{output, &scratch.emitted, prefix, kKeyNan};
  visit_range<kType, Config::kRadixThreads>(row, window.begin, window.end, visitor);
  // The digits found may end above the K-th score's last bits: its key comes from the winners.
  __syncwarp();
  const uint32_t kth_key = __reduce_min_sync(~0u, visitor.kth_key);
  if (lane_id() == 0) atomicMin(&scratch.kth_key, kth_key);
  __syncthreads();
  if (threadIdx.x == 0) {
    if (output.entry != nullptr) {
      write_state_header(p, row_index, output.entry, p.k, scratch.kth_key, -1);
    }
    put_stats(p, row_index, Path::kRadix, rounds + 1, p.k, 0, 0, rounds);
  }
  finish_row<kType>(p, row_index, Config::kRadixThreads);
}

}  // namespace gvr::cuda
