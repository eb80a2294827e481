// SPDX-License-Identifier: Apache-2.0
#include "guess.h"

#include <algorithm>
#include <cmath>

#include "refine.h"
#include "scores.h"

namespace gvr::cpu {
namespace {

constexpr int32_t kBlock = 16;  // neighbours that are sampled together: one cache line of binary32
constexpr int32_t kLeastSample = 256;
constexpr int32_t kMostSample = 2048;
constexpr int32_t kSampleShare = 16;  // at most one score in so many
constexpr int32_t kMostHints = 256;
// Sampled winners from which on the sample needs no help: looking up the hint would cost more time
// than the survivors that a closer floor saves.
constexpr double kEnoughWinners = 4.0;

// Margins above the expected rank, in standard deviations of the number of sampled winners: what
// the sample alone needs, and what suffices when the hint agrees.
constexpr double kSafeMargin = 4.0;
constexpr double kHintedMargin = 2.5;
// Hinted scores above the floor, as a share of all of them.
constexpr double kHintQuantile = 0.75;

// Blocks are far apart: without this each would wait for memory alone.
void prefetch_block(const RowView& row, int32_t first, int32_t length) {
  const auto address = [&](int64_t i) {
    return static_cast<const char*>(row.scores) + i * score_bytes(row.dtype);
  };
  __builtin_prefetch(address(first));
  __builtin_prefetch(address(first + length - 1));
}

}  // namespace

void Guess::draw(const VectorOps& ops, const RowView& row, int32_t k) {
  const int32_t n = row.window.size();
  const int32_t most = std::clamp(n / kSampleShare, kLeastSample, kMostSample);
  const int32_t blocks = std::max(std::min(most, n) / kBlock, 1);
  const int32_t stride = n / blocks;
  const int32_t length = std::min(kBlock, n);
  ops_ = &ops;
  k_ = k;
  size_ = blocks * length;
  positions_.resize(size_);
  keys_.resize(size_);
  int32_t* position = positions_.data();
  for (int32_t b = 0; b < blocks; ++b) {
    // Every block lies somewhere else in its stratum, so that no period of the row is in step.
    const uint64_t hash = static_cast<uint32_t>(b) * 0x9E3779B1u;
    const auto shift =
        static_cast<int32_t>(hash * static_cast<uint32_t>(stride - length + 1) >> 32);
    const int32_t first = row.window.begin + b * stride + shift;
    prefetch_block(row, first, length);
    for (int32_t i = 0; i < length; ++i) *position++ = first + i;
  }
  range_ = ops.gather_keys(row.scores, positions_.data(), size_, keys_.data());
  expected_rank_ = static_cast<double>(size_) * k / n;
  floor_ = floor_at(expected_rank_ + kSafeMargin * std::sqrt(expected_rank_) + 1);
}

void Guess::take_hint(const RowView& row, HintRow hint, int64_t offset) {
  const int32_t step = std::max(1, hint.size / kMostHints);
  positions_.resize(static_cast<size_t>(hint.size / step) + 1);
  int32_t count = 0;
  for (int64_t i = 0; i < hint.size; i += step) {
    const int32_t position = hinted_position(hint.indices[i], offset, row.window);
    positions_[count] = position;
    count += position >= 0;
  }
  if (count == 0) return;
  hinted_.resize(count);
  const KeyRange range = ops_->gather_keys(row.scores, positions_.data(), count, hinted_.data());
  const Survivors scores = {hinted_.data(), nullptr, count};
  const auto rank = static_cast<int64_t>(kHintQuantile * count);
  int32_t rounds = 0;
  const uint32_t hinted =
      floor_under(find_kth(*ops_, {&scores, 1}, std::max<int64_t>(rank, 1), range, rounds).key);
  if (hinted <= floor_) return;
  const uint32_t highest = floor_at(expected_rank_ + kHintedMargin * std::sqrt(expected_rank_) + 1);
  floor_ = std::max(floor_, std::min(hinted, highest));
}

bool Guess::wants_hint() const { return expected_rank_ < kEnoughWinners; }

uint32_t Guess::corrected(uint32_t floor, int64_t count, int64_t wanted) const {
  // So few that their number says nothing about the shape of the row: trust the sample alone.
  if (count <= wanted / 8) {
    return floor_at(expected_rank_ * static_cast<double>(wanted) / k_);
  }
  const int32_t above = ops_->count_keys(keys_.data(), size_, floor);
  return floor_at(static_cast<double>(above) * static_cast<double>(wanted) /
                  static_cast<double>(count));
}

uint32_t Guess::floor_at(double rank) const {
  if (rank >= size_) return kFloorAll;
  // The sample is only read.
  const Survivors sample = {const_cast<uint32_t*>(keys_.data()), nullptr, size_};
  int32_t rounds = 0;
  const int64_t whole = std::max(int64_t{1}, static_cast<int64_t>(rank));
  return floor_under(find_kth(*ops_, {&sample, 1}, whole, range_, rounds).key);
}

}  // namespace gvr::cpu
