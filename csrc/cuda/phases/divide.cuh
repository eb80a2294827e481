// SPDX-License-Identifier: Apache-2.0
// Divide: the exact end for rows that defeat the guess (ties wider than any buffer, distributions
// that no sample describes). It needs nothing but the row, constant shared memory, and a number of
// reads that the data cannot raise.
//
// The key of the K-th score is found first. A sample of the row proposes it: where the K-th place
// lies in a plateau, which is what usually defeats a guess, the sample's own K-th score is the
// plateau's, or the next plateau's, and a read confirms it by counting what is greater and what is
// equal. Otherwise histograms of the keys divide the range in which it must lie, 11 bits at a time:
// three reads at most, and one that counts. Ties are taken by index: every CTA knows from the
// counts of the others how many of its own are wanted, and a histogram of their positions says up
// to which one.
#pragma once

#include <cstdint>

#include "emit.cuh"
#include "scope.cuh"
#include "scratch.cuh"
#include "task.cuh"

namespace gvr::cuda {

inline constexpr int kDivideBits = 11;
inline constexpr int kDivideBins = 1 << kDivideBits;
inline constexpr int kDivideSample = 4096;

struct DivideScratch {
  uint32_t bins[kDivideBins];    // this CTA's
  uint32_t totals[kDivideBins];  // leader: all CTAs', zero between rounds
  uint32_t sample[kDivideSample];
  uint32_t warp_sums[32];
  uint32_t greater_of[kMaxCluster];  // by CTA: scores above the weighed key, and of that key
  uint32_t equal_of[kMaxCluster];
  uint32_t greater, equal;       // of this CTA
  uint32_t bin, before, inside;  // find_bin's answer
  uint32_t emitted;
  int32_t last;            // position of the last tie that is taken
  uint32_t neighbours[2];  // next_sampled's answer
};

static_assert(sizeof(DifferenceScratch) <= sizeof(DivideScratch), "every launch has room for both");

// Keys between which the K-th score's key lies, both inclusive, and how many scores lie beyond.
struct KeyRange {
  uint32_t low = 0, high = kKeyNan;
  uint32_t above = 0;
};

// The bin that holds the wanted-th entry, from the last bin down or from the first one up.
// Block-wide, two barriers; `counts` must be complete before.
template <int kThreads>
__device__ __forceinline__ void find_bin(DivideScratch& scratch, const uint32_t* counts,
                                         uint32_t wanted, bool downwards) {
  constexpr int kPerThread = kDivideBins / kThreads;
  const int first = static_cast<int>(threadIdx.x) * kPerThread;
  const auto bin_of = [&](int i) { return downwards ? kDivideBins - 1 - (first + i) : first + i; };
  uint32_t here[kPerThread];
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) mine += here[i] = counts[bin_of(i)];
  const uint32_t inclusive = warp_inclusive_sum(mine);
  if (lane_id() == 31) scratch.warp_sums[warp_id()] = inclusive;
  __syncthreads();
  const uint32_t of_warp = lane_id() < warp_id() ? scratch.warp_sums[lane_id()] : 0u;
  uint32_t before = __reduce_add_sync(~0u, of_warp) + inclusive - mine;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (before < wanted && wanted <= before + here[i]) {
      scratch.bin = static_cast<uint32_t>(bin_of(i));
      scratch.before = before;
      scratch.inside = here[i];
    }
    before += here[i];
  }
  __syncthreads();
}

// Divides `range` until one key is left; count(range, shift) adds what lies in the range to
// scratch.bins, (key - low) >> shift. Returns the number of rounds. Block-wide on all CTAs.
template <class S, int kThreads, class Count>
__device__ __forceinline__ int divide_range(DivideScratch& scratch, KeyRange& range,
                                            uint32_t wanted, Count count) {
  int rounds = 0;
  while (range.low < range.high) {
    ++rounds;
    const int bits = 32 - __clz(static_cast<int>(range.high - range.low));
    const int shift = max(bits - kDivideBits, 0);
    for (int b = threadIdx.x; b < kDivideBins; b += kThreads) scratch.bins[b] = 0;
    __syncthreads();
    count(range, shift);
    __syncthreads();
    if constexpr (S::kIsCluster) {
      for (int b = threadIdx.x; b < kDivideBins; b += kThreads) {
        if (scratch.bins[b] != 0) atomicAdd(S::remote(&scratch.totals[b], 0), scratch.bins[b]);
      }
      S::sync();
      if (S::rank() == 0) {
        find_bin<kThreads>(scratch, scratch.totals, wanted - range.above, /*downwards=*/true);
        for (int b = threadIdx.x; b < kDivideBins; b += kThreads) scratch.totals[b] = 0;
        const int to = static_cast<int>(threadIdx.x);
        if (to != 0 && to < S::size()) {  // the leader has its own
          const uint32_t bin = scratch.bin, before = scratch.before;
          *S::remote(&scratch.bin, to) = bin;
          *S::remote(&scratch.before, to) = before;
        }
      }
      S::sync();
    } else {
      find_bin<kThreads>(scratch, scratch.bins, wanted - range.above, /*downwards=*/true);
    }
    range.low += scratch.bin << shift;
    const uint32_t span = (1u << shift) - 1u;
    if (range.high - range.low > span) range.high = range.low + span;
    range.above += scratch.before;
    __syncthreads();  // everybody has read the answer
  }
  return rounds;
}

// The next sampled key above `key`, or below it; `key` itself where there is none. Block-wide.
template <int kThreads>
__device__ __forceinline__ uint32_t next_sampled(DivideScratch& scratch, uint32_t key, bool above) {
  if (threadIdx.x == 0) {
    scratch.neighbours[0] = 0u;
    scratch.neighbours[1] = ~0u;
  }
  __syncthreads();
  uint32_t below_key = 0u, above_key = ~0u;
  for (int i = threadIdx.x; i < kDivideSample; i += kThreads) {
    const uint32_t other = scratch.sample[i];
    if (other < key) below_key = max(below_key, other);
    if (other > key) above_key = min(above_key, other);
  }
  __syncwarp();
  below_key = __reduce_max_sync(~0u, below_key);
  above_key = __reduce_min_sync(~0u, above_key);
  if (lane_id() == 0) {
    atomicMax(&scratch.neighbours[0], below_key);
    atomicMin(&scratch.neighbours[1], above_key);
  }
  __syncthreads();
  if (above) return scratch.neighbours[1] != ~0u ? scratch.neighbours[1] : key;
  return scratch.neighbours[0] != 0u ? scratch.neighbours[0] : key;
}

// The key that stands in an evenly spaced sample where the K-th stands in the row. Block-wide.
template <ScoreType kType, int kThreads>
__device__ __forceinline__ uint32_t sampled_kth(DivideScratch& scratch, const RowTask& task,
                                                int k) {
  using E = Element<kType>;
  const auto n = static_cast<uint64_t>(task.window.size());
#pragma unroll 4  // loads in flight
  for (int i = threadIdx.x; i < kDivideSample; i += kThreads) {
    const int at = static_cast<int>(static_cast<uint64_t>(i) * n / kDivideSample);
    scratch.sample[i] = E::key(E::load(task.row, task.window.begin + at));
  }
  const float share = __fdividef(static_cast<float>(k), static_cast<float>(n));
  const uint32_t wanted = min(max(static_cast<int>(share * kDivideSample), 1), kDivideSample);
  KeyRange range;
  divide_range<Scope<false>, kThreads>(scratch, range, wanted, [&](KeyRange r, int shift) {
    for (int i = threadIdx.x; i < kDivideSample; i += kThreads) {
      const uint32_t key = scratch.sample[i];
      if (key >= r.low && key <= r.high) atomicAdd(&scratch.bins[(key - r.low) >> shift], 1u);
    }
  });
  return range.low;
}

// Adds the scores of a key range to a histogram of their keys.
template <ScoreType kType, int kThreads>
struct KeyVisitor {
  using E = Element<kType>;
  uint32_t* bins;
  uint32_t low, high;
  int shift;

  __device__ __forceinline__ void one(uint32_t raw, int) {
    const uint32_t key = E::key(raw);
    if (key >= low && key <= high) atomicAdd(&bins[(key - low) >> shift], 1u);
  }
  __device__ __forceinline__ void tile(const Tile<kType, kThreads>& t) {
#pragma unroll
    for (int b = 0; b < Tile<kType, kThreads>::kScores; ++b) {
      if (b < t.scores) one(E::pick(t.v[b / E::kPerVector], b % E::kPerVector), 0);
    }
  }
};

// Positions of a slice in order, 32 vectors to a segment: those of one warp and one load, so that
// ties are counted by warp. A bin holds 2^shift segments.
template <ScoreType kType>
struct Segments {
  static constexpr int kScores = 32 * Element<kType>::kPerVector;
  int begin, body, end, shift;

  __device__ __forceinline__ explicit Segments(const RowTask& task) {
    const VectorRange<kType> range(task.row, task.begin, task.end);
    begin = range.begin;
    body = range.body;
    end = range.end;
    const int count = (end - body) / kScores + 2;
    shift = max(32 - __clz(count - 1) - kDivideBits, 0);
  }
  // Scores in front of the first whole vector have a segment of their own.
  __device__ __forceinline__ int bin(int index) const {
    return (index < body ? 0 : 1 + (index - body) / kScores) >> shift;
  }
  __device__ __forceinline__ int first(int bin) const {
    const int64_t segment = static_cast<int64_t>(bin) << shift;
    if (segment == 0) return begin;
    return static_cast<int>(min(body + (segment - 1) * kScores, static_cast<int64_t>(end)));
  }
};

// A key to compare scores with, as floats compare.
struct Pivot {
  float value;
  bool nan;

  __device__ __forceinline__ explicit Pivot(uint32_t key)
      : value(key_to_float(key)), nan(key == kKeyNan) {}
  __device__ __forceinline__ bool exceeded_by(float x) const { return !nan && !(x <= value); }
  __device__ __forceinline__ bool equals(float x) const { return nan ? x != x : x == value; }
};

// Counts what is greater than the pivot and what is equal, the latter also by position.
template <ScoreType kType, int kThreads>
struct WeighVisitor {
  using E = Element<kType>;
  uint32_t* bins;
  Pivot pivot;
  Segments<kType> segments;
  uint32_t greater = 0, equal = 0;

  __device__ __forceinline__ void one(uint32_t raw, int index) {
    const float x = E::to_float(raw);
    greater += pivot.exceeded_by(x) ? 1u : 0u;
    if (!pivot.equals(x)) return;
    ++equal;
    atomicAdd(&bins[segments.bin(index)], 1u);
  }
  __device__ __forceinline__ void tile(const Tile<kType, kThreads>& t) {
#pragma unroll
    for (int u = 0; u < Config::kUnroll; ++u) {
      uint32_t ties = 0;
#pragma unroll
      for (int j = 0; j < E::kPerVector; ++j) {
        const bool exists = u * E::kPerVector + j < t.scores;
        const float x = E::to_float(E::pick(t.v[u], j));
        greater += exists && pivot.exceeded_by(x) ? 1u : 0u;
        ties += exists && pivot.equals(x) ? 1u : 0u;
      }
      const uint32_t of_warp = __reduce_add_sync(~0u, ties);
      if (of_warp == 0) continue;
      equal += ties;
      if (lane_id() == 0) atomicAdd(&bins[segments.bin(t.index(u * E::kPerVector))], of_warp);
    }
  }
};

// Scores of the row above `key` and of that key. scratch.greater_of and equal_of get every CTA's
// share, scratch.bins this CTA's ties by position. Block-wide on all CTAs.
struct Weight {
  uint32_t greater, equal;
  // Whether the K-th score has that key.
  __device__ __forceinline__ bool holds(uint32_t k) const {
    return greater < k && k <= greater + equal;
  }
};
template <ScoreType kType, class S, int kThreads>
__device__ __noinline__ Weight weigh(DivideScratch& scratch, const RowTask& task, uint32_t key) {
  for (int b = threadIdx.x; b < kDivideBins; b += kThreads) scratch.bins[b] = 0;
  if (threadIdx.x == 0) scratch.greater = scratch.equal = 0;
  S::sync();  // nobody reads the counts of an earlier call any more
  WeighVisitor<kType, kThreads> visitor{scratch.bins, Pivot(key), Segments<kType>(task)};
  visit_range<kType, kThreads>(task.row, task.begin, task.end, visitor);
  __syncwarp();
  const uint32_t greater = __reduce_add_sync(~0u, visitor.greater);
  const uint32_t equal = __reduce_add_sync(~0u, visitor.equal);
  if (lane_id() == 0) {
    atomicAdd(&scratch.greater, greater);
    atomicAdd(&scratch.equal, equal);
  }
  __syncthreads();
  const int to = static_cast<int>(threadIdx.x);
  if (to < S::size()) {
    S::remote(scratch.greater_of, to)[S::rank()] = scratch.greater;
    S::remote(scratch.equal_of, to)[S::rank()] = scratch.equal;
  }
  S::sync();
  Weight weight{0, 0};
  for (int c = 0; c < S::size(); ++c) {
    weight.greater += scratch.greater_of[c];
    weight.equal += scratch.equal_of[c];
  }
  return weight;
}

// The position up to which this CTA's first `wanted` ties lie, from the histogram of weigh().
// 0 < wanted < the CTA's ties. Block-wide.
template <ScoreType kType, int kThreads>
__device__ __forceinline__ int last_tie(DivideScratch& scratch, const RowTask& task, uint32_t key,
                                        uint32_t wanted) {
  using E = Element<kType>;
  find_bin<kThreads>(scratch, scratch.bins, wanted, /*downwards=*/false);
  const Segments<kType> segments(task);
  const int bin = static_cast<int>(scratch.bin);
  const int end = segments.first(bin + 1);
  uint32_t left = wanted - scratch.before;
  for (int64_t at = segments.first(bin); at < end; at += kThreads) {
    const int64_t index = at + threadIdx.x;
    const bool tie = index < end && E::key(E::load(task.row, index)) == key;
    const uint32_t ties = __ballot_sync(~0u, tie);
    if (lane_id() == 0) scratch.warp_sums[warp_id()] = __popc(ties);
    __syncthreads();
    uint32_t before = 0, total = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      before += w < warp_id() ? scratch.warp_sums[w] : 0u;
      total += scratch.warp_sums[w];
    }
    const uint32_t through = before + __popc(ties & (~0u >> (31 - lane_id())));
    if (tie && through == left) scratch.last = static_cast<int32_t>(index);
    __syncthreads();
    if (total >= left) break;
    left -= total;
  }
  return scratch.last;
}

// Writes the winners: one atomic per warp and tile.
template <ScoreType kType, int kThreads>
struct WinnerVisitor {
  using E = Element<kType>;
  const RowOutput<kType>& output;
  uint32_t* emitted;
  uint32_t base;
  Pivot pivot;
  int last;

  __device__ __forceinline__ bool wins(uint32_t raw, int index) const {
    const float x = E::to_float(raw);
    return pivot.exceeded_by(x) || (pivot.equals(x) && index <= last);
  }
  __device__ __forceinline__ void one(uint32_t raw, int index) {
    if (wins(raw, index)) output.put(base + atomicAdd(emitted, 1u), raw, index);
  }
  __device__ __forceinline__ void tile(const Tile<kType, kThreads>& t) {
    uint32_t winners = 0;
#pragma unroll
    for (int b = 0; b < Tile<kType, kThreads>::kScores; ++b) {
      const uint32_t raw = E::pick(t.v[b / E::kPerVector], b % E::kPerVector);
      if (b < t.scores && wins(raw, t.index(b))) winners |= 1u << b;
    }
    if (!__any_sync(~0u, winners != 0)) return;
    const auto mine = static_cast<uint32_t>(__popc(winners));
    const uint32_t inclusive = warp_inclusive_sum(mine);
    uint32_t position = 0;
    if (lane_id() == 31) position = atomicAdd(emitted, inclusive);
    position = base + __shfl_sync(~0u, position, 31) + inclusive - mine;
#pragma unroll
    for (int b = 0; b < Tile<kType, kThreads>::kScores; ++b) {
      if (winners & (1u << b)) {
        output.put(position++, E::pick(t.v[b / E::kPerVector], b % E::kPerVector), t.index(b));
      }
    }
  }
};

// What the telemetry says of a row that ends here.
struct Earlier {
  Path path;
  int passes;
  uint32_t overflows;
  int undershoots;
};

// The key of the row's K-th score; the counts and the histogram of ties are those of the last
// weigh(), which was for this key. `candidate`: a key to begin with, 0: none. Block-wide on all
// CTAs.
struct Kth {
  uint32_t key;
  Weight weight;
  int reads, rounds;
};
template <ScoreType kType, class S, int kThreads>
__device__ __forceinline__ Kth find_kth_key(DivideScratch& scratch, const RowTask& task, int k_,
                                            uint32_t candidate) {
  const auto k = static_cast<uint32_t>(k_);
  constexpr int kProposals = 2;
  KeyRange range;
  Kth kth{candidate, {}, 0, 0};
  if (candidate == 0u) kth.key = sampled_kth<kType, kThreads>(scratch, task, k_);
  for (int proposal = 0; proposal < kProposals; ++proposal) {
    kth.weight = weigh<kType, S, kThreads>(scratch, task, kth.key);
    ++kth.reads;
    if (kth.weight.holds(k)) return kth;
    const bool higher = kth.weight.greater >= k;
    if (higher) {
      range.low = kth.key + 1u;
    } else {
      range.high = kth.key - 1u;
      range.above = kth.weight.greater + kth.weight.equal;
    }
    if (candidate != 0u || proposal + 1 == kProposals) break;  // a candidate has no sample
    const uint32_t next = next_sampled<kThreads>(scratch, kth.key, higher);
    if (next < range.low || next > range.high) break;
    kth.key = next;
  }
  kth.rounds = divide_range<S, kThreads>(scratch, range, k, [&](KeyRange r, int shift) {
    KeyVisitor<kType, kThreads> visitor{scratch.bins, r.low, r.high, shift};
    visit_range<kType, kThreads>(task.row, task.begin, task.end, visitor);
  });
  kth.key = range.low;
  kth.weight = weigh<kType, S, kThreads>(scratch, task, kth.key);
  kth.reads += kth.rounds + 1;
  return kth;
}

// Selects and writes the whole row, which holds more than K scores; nothing of it has been written
// before. All CTAs of the row and kThreads threads of each, which agree on `candidate` (see above).
// `entry` is begin_entry's.
template <ScoreType kType, class S, int kThreads>
__device__ __noinline__ void divide_row(const TopKParams& p, int32_t* entry, uint32_t candidate,
                                        Earlier earlier) {
  auto& scratch = *reinterpret_cast<DivideScratch*>(g_shared);
  __pipeline_wait_prior(0);  // copies on their way into what becomes scratch
  S::sync();                 // nobody looks at another CTA's earlier shared memory any more
  for (int b = threadIdx.x; b < kDivideBins; b += kThreads) scratch.totals[b] = 0;
  if (threadIdx.x == 0) scratch.emitted = 0;
  const RowTask task = make_task<kType, S>(p);
  const Kth kth = find_kth_key<kType, S, kThreads>(scratch, task, p.k, candidate);

  // Ties go to the CTAs in order, which is the order of their positions.
  uint32_t base = 0, mine = 0;
  uint32_t left = static_cast<uint32_t>(p.k) - kth.weight.greater;
  for (int c = 0; c <= S::rank(); ++c) {
    mine = min(left, scratch.equal_of[c]);
    left -= mine;
    if (c < S::rank()) base += scratch.greater_of[c] + mine;
  }
  int last = mine == 0 ? -1 : INT32_MAX;
  if (mine != 0 && mine < scratch.equal_of[S::rank()]) {
    last = last_tie<kType, kThreads>(scratch, task, kth.key, mine);
  }
  const RowOutput<kType> output(p, task.row_index, entry);
  WinnerVisitor<kType, kThreads> visitor{output, &scratch.emitted, base, Pivot(kth.key), last};
  visit_range<kType, kThreads>(task.row, task.begin, task.end, visitor);
  if (wants_finish(p)) S::sync();  // all winners are written
  if (S::rank() != 0) return;
  finish_row<kType>(p, task.row_index, kThreads);
  if (threadIdx.x != 0) return;
  if (entry != nullptr) write_state_header(p, task.row_index, entry, p.k, kth.key, -1);
  put_stats(p, task.row_index, earlier.path, earlier.passes + kth.reads + 1,
            static_cast<uint32_t>(p.k), earlier.overflows, earlier.undershoots, kth.rounds);
}

}  // namespace gvr::cuda
