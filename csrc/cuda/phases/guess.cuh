// SPDX-License-Identifier: Apache-2.0
// Guess: a threshold that admits a little more than K scores, from a sample of the row and from the
// current scores at the hinted positions. It decides how much is staged, never what the answer is.
//
// Rungs (candidate thresholds) come from order statistics that need no sort of the sample: the
// largest of g scores exceeds x with probability 1 - (1 - p)^g when one score does with p, so 32
// such maxima, sorted across a warp, place the quantile p at a known rank; the warps' answers are
// averaged. Each rung is then counted on the sample itself, which is unbiased whatever the rungs
// are, and the tightest one that promises enough survivors is taken. Every CTA of a cluster does
// the same on the same sample: no communication, one threshold.
#pragma once

#include <cstdint>

#include "../../common/rows.h"
#include "scratch.cuh"
#include "slice.cuh"

namespace gvr::cuda {

// Finite stand-ins, so that averages and differences of rungs stay finite.
inline constexpr float kRungLimit = 1.0e36f;
inline constexpr float kRungSane = 1.0e32f;  // an average with a limit in it lies beyond

__device__ __forceinline__ float clamp_rung(float x) {
  return fminf(fmaxf(x, -kRungLimit), kRungLimit);  // NaN becomes the lower limit
}

// 32 values, one per lane -> descending over the lanes.
__device__ __forceinline__ float warp_sort_descending(float x) {
#pragma unroll
  for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
    for (int d = size / 2; d > 0; d /= 2) {
      const float other = __shfl_xor_sync(~0u, x, d);
      const bool want_larger = ((lane_id() & size) == 0) == ((lane_id() & d) == 0);
      x = want_larger ? fmaxf(x, other) : fminf(x, other);
    }
  }
  return x;
}

// The value at a fractional rank of the sorted lanes.
__device__ __forceinline__ float lane_quantile(float sorted, float rank) {
  const float bounded = fminf(fmaxf(rank, 0.0f), 31.0f);
  const int at = min(static_cast<int>(bounded), 30);
  const float upper = __shfl_sync(~0u, sorted, at);
  const float lower = __shfl_sync(~0u, sorted, at + 1);
  return upper + (lower - upper) * (bounded - static_cast<float>(at));
}

// A strided sample of the window in whole vectors: pairs of neighbours (one 32-byte sector) spread
// evenly. Every warp's pairs span the window, so that each is a sample of its own, whatever trends
// the row has. A window of few vectors is sampled whole. Positions that do not exist hold -inf.
template <ScoreType kType>
struct RowSample {
  using E = Element<kType>;
  static constexpr int kScores = 16;  // per thread, at most
  static constexpr int kVectors = kScores / E::kPerVector;
  uint4 v[kVectors];
  int count;  // scores sampled by the whole block

  __device__ __forceinline__ void load(const void* row, RowWindow window) {
    const VectorRange<kType> range(row, window.begin, window.end);
    const uint4* data = range.data(row);
    const int slots = kVectors * Config::kThreads;
    count = min(slots, range.vectors) * E::kPerVector;
    const float pairs = static_cast<float>(range.vectors / 2) / static_cast<float>(slots / 2);
    constexpr uint32_t kFill =
        sizeof(typename E::Storage) == 4 ? E::Traits::kMinusInf : E::Traits::kMinusInf * 0x10001u;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      v[j] = make_uint4(kFill, kFill, kFill, kFill);
      const int pair = (lane_id() / 2) * Config::kWarps + warp_id();
      const int slot = j * Config::kThreads + 2 * pair + (lane_id() & 1);
      int at = slot;
      if (range.vectors > slots) {
        // Rounding may move a sampled pair, never past the end: slot / 2 < slots / 2.
        at = static_cast<int>(static_cast<float>(slot / 2) * pairs) * 2 + (slot & 1);
      }
      if (at < range.vectors) v[j] = __ldg(data + at);
    }
  }

  __device__ __forceinline__ float score(int i) const {
    return E::to_float(E::pick(v[i / E::kPerVector], i % E::kPerVector));
  }
};

// The current score at one of the hinted positions per thread, spread over the hint.
template <ScoreType kType>
__device__ __forceinline__ float hinted_score(const TopKParams& p, const void* row,
                                              RowWindow window, HintRow hint) {
  const float spread =
      fmaxf(static_cast<float>(hint.size) / static_cast<float>(Config::kThreads), 1.0f);
  const int i = static_cast<int>(static_cast<float>(threadIdx.x) * spread);
  if (i >= hint.size) return -kRungLimit;
  const int32_t position = hinted_position(hint.indices[i], p.hint_offset, window);
  if (position < 0) return -kRungLimit;
  return clamp_rung(Element<kType>::to_float(Element<kType>::load(row, position)));
}

// Survivors wanted for each rung as multiples of what is needed; beside a hint the row's rungs are
// fewer, and hinted quantiles, counted from the best, take the rest. The quantile that fits moves
// from 0.85 to 0.25 with the overlap of consecutive steps.
struct Rung {
  float multiple;
  float quantile;  // of the hint; 0: from the row
};
__device__ __forceinline__ Rung rung_of_lane(int r, bool hinted) {
  const float ratio = hinted ? 1.75f : 1.4f;
  const float first = hinted ? 0.7f : 0.5f;
  const bool from_hint = hinted && r >= 4;
  // 0.5 * 1.4^r: 0.5 .. 5.3; beside a hint 0.7 * 1.75^r: 0.7 .. 3.75.
  return {first * __powf(ratio, static_cast<float>(r)),
          from_hint ? 0.3f + 0.18f * static_cast<float>(r - 4) : 0.0f};
}

// The exclusive key above which about `needed` sampled scores lie, never fewer than the counted
// rungs prove: between the tightest rung that has enough and the widest that has not, the logarithm
// of the count is close to linear in the score. 0 (everything) where no rung has enough.
__device__ __forceinline__ uint32_t choose_threshold(const Scratch& scratch, float needed) {
  float enough_count = 3.0e38f, few_count = 0.0f, enough = 0.0f, few = 0.0f;
#pragma unroll
  for (int r = 0; r < Config::kRungs; ++r) {
    const float count = static_cast<float>(scratch.rung_counts[r]);
    if (count >= needed && count < enough_count) {
      enough_count = count;
      enough = scratch.rung[r];
    }
    if (count < needed && count > few_count) {
      few_count = count;
      few = scratch.rung[r];
    }
  }
  if (enough_count == 3.0e38f) return 0u;
  float threshold = enough;
  // Infinities among the sampled scores make rungs between which nothing is linear.
  if (few_count > 0.0f && few > enough && few < kRungSane) {
    const float way = __logf(enough_count / needed) / __logf(enough_count / few_count);
    threshold = enough + 0.9f * way * (few - enough);
  }
  return ordered_key(float_bits(threshold));
}

// Share of the row to admit from which on a group of far-apart scores sees enough winners.
inline constexpr float kFarGroupFraction = 0.02f;

// How much the guess costs against how much it admits.
enum class GuessMode {
  kQuick,    // trust the order statistics and admit about twice K: for rows shared by many CTAs
  kCounted,  // count the rungs on the sample and admit about 1.4 K
};

// Survivors to aim at, in sampled scores: the sampled share of K and five standard deviations of
// the sampling error (none when the sample is the row).
struct Aim {
  float needed, fraction;

  __device__ __forceinline__ Aim(int k, int n, int count) {
    const float sampled = fmaxf(static_cast<float>(count), 1.0f);
    const float part = __fdividef(sampled, static_cast<float>(n));
    const float expected = static_cast<float>(k) * part;
    needed = expected + 5.0f * sqrtf(expected * fmaxf(1.0f - part, 0.0f)) + 2.0f;
    fraction = fminf(__fdividef(needed, sampled), 1.0f);
  }
};

// Block-wide: each warp's rungs and greatest score, averaged over the warps into scratch.rung.
// One barrier. Every lane returns with rung (lane % kRungs).
template <ScoreType kType>
__device__ __forceinline__ float average_rungs(const TopKParams& p, Scratch& scratch,
                                               const RowSample<kType>& sample, const void* row,
                                               RowWindow window, HintRow hint, bool hinted,
                                               float fraction) {
  using Sample = RowSample<kType>;
  constexpr int kVector = Element<kType>::kPerVector;
  constexpr int kVectors = Sample::kVectors;
  // Neighbours in a row resemble each other and count as fewer than they are; as long as there are
  // enough winners to see, a group takes one score of each vector, and those lie far apart.
  const int group = fraction * kVectors > 1.0f     ? 1
                    : fraction > kFarGroupFraction ? kVectors
                                                   : Sample::kScores;
  const float single = clamp_rung(sample.score(0));
  float most = single;
#pragma unroll
  for (int j = 1; j < kVectors; ++j) most = fmaxf(most, clamp_rung(sample.score(j * kVector)));
  float value = group == 1 ? single : most;
#pragma unroll
  for (int i = 0; i < Sample::kScores; ++i) {
    if (i % kVector != 0) most = fmaxf(most, clamp_rung(sample.score(i)));
  }
  if (group == Sample::kScores) value = most;
  const float sorted = warp_sort_descending(value);

  const Rung mine = rung_of_lane(lane_id() & (Config::kRungs - 1), hinted);
  const float wanted = fminf(fraction * mine.multiple, 0.999f);
  const float exceeding = 1.0f - exp2f(static_cast<float>(group) * __log2f(1.0f - wanted));
  float rung = lane_quantile(sorted, 32.0f * exceeding - 0.5f);
  if (hinted) {
    const float sorted_hint = warp_sort_descending(hinted_score<kType>(p, row, window, hint));
    const float from_hint = lane_quantile(sorted_hint, 32.0f * mine.quantile - 0.5f);
    if (mine.quantile > 0.0f && hint.size > 0) rung = from_hint;
  }
  const float finite = most < kRungLimit ? most : -kRungLimit;
  const uint32_t greatest = __reduce_max_sync(~0u, ordered_key(float_bits(finite)));
  if (lane_id() < Config::kRungs) scratch.rungs[warp_id()][lane_id()] = rung;
  if (lane_id() == 0) scratch.greatest[warp_id()] = key_to_float(greatest);
  __syncthreads();

  float sum = 0.0f;
  for (int w = lane_id() / Config::kRungs; w < Config::kWarps; w += 32 / Config::kRungs) {
    sum += scratch.rungs[w][lane_id() & (Config::kRungs - 1)];
  }
  sum += __shfl_xor_sync(~0u, sum, 8);
  sum += __shfl_xor_sync(~0u, sum, 16);
  return __fdividef(sum, static_cast<float>(Config::kWarps));
}

// Block-wide: scratch.rung_counts (zero before) of the sample. Two barriers.
template <ScoreType kType>
__device__ __forceinline__ void count_rungs(Scratch& scratch, const RowSample<kType>& sample,
                                            float rung_of_my_lane) {
  uint32_t mine_above = 0;  // lane r: sampled scores of the warp above rung r
#pragma unroll 2
  for (int r = 0; r < Config::kRungs; ++r) {
    const float rung = __shfl_sync(~0u, rung_of_my_lane, r);
    uint32_t above = 0;
#pragma unroll
    for (int i = 0; i < RowSample<kType>::kScores; ++i) {
      above += !(sample.score(i) <= rung) ? 1u : 0u;
    }
    above = __reduce_add_sync(~0u, above);
    if (lane_id() == r) mine_above = above;
  }
  if (lane_id() < Config::kRungs) atomicAdd(&scratch.rung_counts[lane_id()], mine_above);
  __syncthreads();
}

// Block-wide; scratch.rung_counts must be zero. The result lies in scratch.guess after the caller's
// next barrier; the threshold is returned to every thread. scratch.rung stays for a retry.
template <ScoreType kType>
__device__ __forceinline__ uint32_t guess_threshold(const TopKParams& p, Scratch& scratch,
                                                    HintRow hint, bool hinted, GuessMode mode) {
  const void* row = scratch.task.row;
  const RowWindow window = scratch.task.window;
  RowSample<kType> sample;
  sample.load(row, window);
  const Aim aim(p.k, window.size(), sample.count);
  const float rung =
      average_rungs<kType>(p, scratch, sample, row, window, hint, hinted, aim.fraction);
  if (threadIdx.x < Config::kRungs) scratch.rung[threadIdx.x] = rung;

  uint32_t below_key = 0u;
  // More than half of the row would be staged: then all of it may be, without a threshold.
  if (aim.fraction <= 0.5f) {
    // Few winners in the sample make order statistics too coarse to be trusted uncounted.
    if (mode == GuessMode::kQuick && aim.fraction > kFarGroupFraction) {
      // Rung 3 is 1.37 times what is needed: room for the error of the order statistics.
      below_key = ordered_key(float_bits(__shfl_sync(~0u, rung, 3)));
    } else {
      count_rungs<kType>(scratch, sample, rung);
      below_key = choose_threshold(scratch, aim.needed);
    }
  }
  const float lowest = __shfl_sync(~0u, rung, Config::kRungs - 1);
  if (threadIdx.x == 0) {
    float high = scratch.greatest[0];
    for (int w = 1; w < Config::kWarps; ++w) high = fmaxf(high, scratch.greatest[w]);
    scratch.guess = {below_key, below_key == 0u ? lowest : key_to_float(below_key), high,
                     aim.needed};
  }
  return below_key;
}

}  // namespace gvr::cuda
