// SPDX-License-Identifier: Apache-2.0
// What a CTA of the resident kernel holds in shared memory: its slice of the row, the bins of the
// histogram, the entries to be ranked.
#pragma once

#include <climits>
#include <cstdint>

#include "crossing.cuh"
#include "slice.cuh"
#include "task.cuh"

namespace gvr::cuda {

// kMore: more than indices is wanted (values, state, telemetry, places in the KV cache). Calls that
// want no more are so short that fetching the instructions to ask for it would show.
template <ScoreType kScoreType, bool kIsCluster, int kBlock, bool kWantsMore>
struct ResidentConfig {
  static constexpr ScoreType kType = kScoreType;
  static constexpr bool kCluster = kIsCluster;
  static constexpr bool kMore = kWantsMore;
  static constexpr int kThreads = kBlock;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBins = kThreads < 512 || !kCluster ? kThreads : 512;
  using E = Element<kType>;
  using S = Scope<kCluster>;
};

template <class C>
struct ResidentScratch {
  uint64_t ranks[Config::kRankCapacity];  // leader: entries of the crossing bin
  uint32_t rank_raw[Config::kRankCapacity];
  alignas(16) uint32_t bins[C::kBins + 4];  // the best first, and one for what no bin admits
  int32_t warp_low[C::kWarps], warp_high[C::kWarps];
  uint32_t warp_here[C::kBins / 32], warp_earlier[C::kBins / 32];
  // Where the K-th score lies: entries in better bins and in its bin, of all CTAs and of the CTAs
  // before this one. `bin` is negative where the histogram holds fewer than K entries.
  int32_t bin;
  uint32_t above, inside, above_earlier, inside_earlier;
  uint32_t capacity;  // entries of the crossing bin that may be ranked
  uint32_t admitted;  // entries of the histogram, for telemetry
  int32_t rounds;     // histograms, for telemetry
  uint32_t emitted;   // entries of better bins placed by this CTA
  uint32_t ranked;    // entries of the crossing bin placed by this CTA
};

// Every CTA's histogram, written into each CTA of the cluster.
template <class C>
using ResidentMerged = uint16_t[kMaxCluster][C::kBins];

// Dynamic shared memory: the scratch, the merged bins of a cluster, the slice, and lists of winners
// where there is room for them and the slice is still read afterwards.
template <class C>
struct ResidentLayout {
  static constexpr size_t kMerged = sizeof(ResidentScratch<C>);
  static constexpr size_t kSlice = kMerged + (C::kCluster ? sizeof(ResidentMerged<C>) : 0);
  static_assert(kMerged % 16 == 0 && kSlice % 16 == 0, "read by 16-byte loads");

  static __host__ __device__ constexpr size_t bytes(const Plan& plan) {
    constexpr int kRound = C::kThreads * C::E::kPerVector;
    const size_t rounds = (plan.slice + kRound - 1) / kRound;
    const size_t lists = plan.own_lists ? rounds * kRound * sizeof(uint16_t) : 0;
    return kSlice + rounds * C::kThreads * sizeof(uint4) + lists;
  }
};

template <class C>
__device__ __forceinline__ ResidentScratch<C>& resident_scratch() {
  return *reinterpret_cast<ResidentScratch<C>*>(g_shared);
}

template <class C>
__device__ __forceinline__ ResidentMerged<C>& resident_merged() {
  return *reinterpret_cast<ResidentMerged<C>*>(g_shared + ResidentLayout<C>::kMerged);
}

// A CTA's slice, packed into vectors: first the whole 16-byte vectors of memory, then the scores
// outside them, at last -inf, which no bin admits. Vector i belongs to thread i % kThreads, and the
// vectors of a warp lie together. A thread reads its own alone, so no barrier is needed.
template <class C>
struct ResidentSlice {
  using E = typename C::E;
  using Storage = typename E::Storage;
  static constexpr int kVector = E::kPerVector;
  static constexpr int kRound = C::kThreads * kVector;  // scores between a thread's vectors
  int begin;                                            // row index of the first score
  int head;                                             // scores in front of the first whole vector
  int whole;                                            // scores in whole vectors
  int vectors;                                          // of this thread
  int early;       // of them, those that are sent for first; in a cluster
  int warp_bytes;  // of all vectors of a warp

  __device__ __forceinline__ unsigned char* warp_vectors(int warp) const {
    return g_shared + ResidentLayout<C>::kSlice + warp * warp_bytes;
  }
  __device__ __forceinline__ uint4& vector(int u) const {
    return reinterpret_cast<uint4*>(warp_vectors(warp_id()))[u * 32 + lane_id()];
  }

  __device__ __forceinline__ void send(const void* row, int first, int last) {
    const VectorRange<C::kType> range(row, first, last);
    begin = first;
    head = range.body - range.begin;
    whole = range.vectors * kVector;
    constexpr uint32_t kAll = C::kThreads;
    const uint32_t mine = threadIdx.x;
    const uint32_t existing = range.vectors;
    const uint32_t edges = range.edge_count();
    const uint32_t slots = existing + (edges + kVector - 1) / kVector;
    const uint32_t rounds = (slots + kAll - 1) / kAll;
    vectors = static_cast<int>((slots + kAll - 1 - mine) / kAll);
    warp_bytes = static_cast<int>(rounds * 32 * sizeof(uint4));
    const uint4* from = range.data(row) + mine;
    uint4* to = &vector(0);
    uint32_t at = mine;
    if constexpr (C::kCluster) {
      const uint32_t half = (rounds + 1) / 2;
      send_until(min(half * kAll, existing), from, to, at);
      early = min(vectors, static_cast<int>(half));
    }
    send_until(existing, from, to, at);
    if (edges > 0) [[unlikely]] {
      const uint32_t slot = existing + (mine - existing) % kAll;
      if (slot < slots) store_edge(row, range, static_cast<int>(slot));
    }
  }
  __device__ __forceinline__ void arrive() const { __pipeline_wait_prior(0); }
  // The same for the first `early` vectors alone.
  __device__ __forceinline__ void arrive_early() const { __pipeline_wait_prior(1); }

  static __device__ __forceinline__ void send_until(uint32_t end, const uint4*& from, uint4*& to,
                                                    uint32_t& at) {
#pragma unroll 1  // rows are short, and instructions must be fetched
    for (; at < end; at += C::kThreads) {
      __pipeline_memcpy_async(to, from, sizeof(uint4));
      from += C::kThreads;
      to += 32;
    }
    __pipeline_commit();
  }

  // A vector of this thread behind the whole ones: scores outside them, and -inf.
  __device__ __noinline__ void store_edge(const void* row, const VectorRange<C::kType> range,
                                          int slot) const {
    auto* const to = reinterpret_cast<Storage*>(&vector(slot / C::kThreads));
    const int first = slot * kVector - whole;
    for (int j = 0; j < kVector; ++j) {
      to[j] = static_cast<Storage>(first + j < range.edge_count()
                                       ? E::load(row, range.edge_index(first + j))
                                       : E::Traits::kMinusInf);
    }
  }

  // Place in the packed slice of this thread's score whose bit in a mask is the given one; the
  // highest bit is its first score.
  static __device__ __forceinline__ int place(int bit) {
    constexpr int kBits = 32;
    constexpr int kHighest = (kBits / kVector - 1) * kRound + kVector - 1;
    // (bit / kVector) * kRound + bit % kVector before the highest
    return static_cast<int>(threadIdx.x) * kVector + kHighest - bit * C::kThreads +
           (bit & (kVector - 1)) * (C::kThreads - 1);
  }
  // Row index of a place, and its score.
  __device__ __forceinline__ int index(int place) const {
    if (head == 0) return begin + place;
    if (place < whole) return begin + head + place;
    return place - whole < head ? begin + place - whole : begin + place;
  }
  __device__ __forceinline__ uint32_t raw_at(int place) const {
    const uint32_t at = place, slot = at / kVector, thread = slot % C::kThreads;
    const auto* warp = reinterpret_cast<const Storage*>(warp_vectors(thread / 32));
    return warp[(slot / C::kThreads * 32 + thread % 32) * kVector + at % kVector];
  }
  // First score of this thread's u-th vector.
  __device__ __forceinline__ uint32_t first_of(int u) const {
    return *reinterpret_cast<const Storage*>(&vector(u));
  }

  // Room for the places of this warp's winners: of its own, or that of its scores.
  __device__ __forceinline__ uint16_t* list(bool own) const {
    if (!own) return reinterpret_cast<uint16_t*>(warp_vectors(warp_id()));
    const int each = warp_bytes / static_cast<int>(sizeof(uint4)) * kVector;
    return reinterpret_cast<uint16_t*>(warp_vectors(C::kWarps)) + warp_id() * each;
  }
};

// Floats as signed integers of the same order, NaN at both ends; its own inverse.
__device__ __forceinline__ int float_order(int bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }
inline constexpr int kOrderPlusInf = 0x7F800000, kOrderMinusInf = ~0x7F800000;

// The approximate reciprocal; 0 for what is too large, infinity for what is too small.
__device__ __forceinline__ float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

// Bin of a score: 0 is the best, open above; kBins is refused, as are -inf and whatever is under
// the bound.
template <int kBins>
struct ResidentBins {
  float slope, offset;  // of bin_code
  bool usable;          // floats can divide the range

  // `least` lies in the last bin, `most` a number of bins before its end.
  static __device__ __forceinline__ ResidentBins between(float least, float most,
                                                         float bins_apart) {
    constexpr float kLast = 1.0f - 1.0f / kBins;
    const float scale = bins_apart / kBins * reciprocal(most - least);
    // A range so wide that the scale is 0 would turn infinities into NaN, the best of all.
    const bool usable = most > least && scale > 0.0f && scale < 1.0e30f && fabsf(least) < 1.0e30f;
    return {-scale, fmaf(least, scale, kLast), usable};
  }
  __device__ __forceinline__ int code(float x) const { return bin_code<kBins>(x, slope, offset); }
  __device__ __forceinline__ int bin(float x) const { return code(x) - kBinOrigin; }
  // Bins that divide one bin, and a little around it. What lies beyond the best bin is spread over
  // as wide a range again as all bins cover.
  __device__ __forceinline__ ResidentBins finer(int bin) const {
    constexpr float kBin = 1.0f / kBins;
    const float middle = static_cast<float>(bin) * kBin;
    const float before = bin == 0 ? 1.0f : 0.52f * kBin;
    const float least = __fdividef(middle + 0.52f * kBin - offset, slope);
    const float most = __fdividef(middle - before - offset, slope);
    return between(least, most, kBins - 2);
  }
};

}  // namespace gvr::cuda
