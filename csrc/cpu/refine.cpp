// SPDX-License-Identifier: Apache-2.0
#include "refine.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

namespace gvr::cpu {
namespace {

constexpr int32_t kNarrow = 256;  // keys that are worth copying out of all survivors

int64_t count_above(const VectorOps& ops, std::span<const Survivors> slices, uint32_t floor) {
  int64_t count = 0;
  for (const Survivors& slice : slices) count += ops.count_keys(slice.keys, slice.count, floor);
  return count;
}

// Index of the `tie`-th survivor that equals `key`.
int32_t tie_index(std::span<const Survivors> slices, uint32_t key, int64_t tie) {
  for (const Survivors& slice : slices) {
    for (int32_t i = 0; i < slice.count; ++i) {
      if (slice.keys[i] == key && --tie == 0) return slice.indices[i];
    }
  }
  return std::numeric_limits<int32_t>::max();
}

}  // namespace

// Bisection of the key range. Counting a few thousand keys with vectors takes a tenth of a
// microsecond, so that some thirty rounds cost less than two histograms of scattered increments.
KthKey find_kth(const VectorOps& ops, std::span<const Survivors> slices, int64_t rank,
                KeyRange range, int32_t& rounds) {
  std::array<uint32_t, kNarrow + kVectorSlack> narrow;
  Survivors inside = {narrow.data(), nullptr, 0};
  bool narrowed = false;
  int64_t above = 0;     // keys > range.high, fewer than rank
  int64_t reaching = 0;  // keys >= range.low
  int64_t left_out = 0;  // keys above the range that are no longer looked at
  for (const Survivors& slice : slices) reaching += slice.count;
  for (; range.low < range.high; ++rounds) {
    if (!narrowed && reaching - above <= kNarrow) {
      for (const Survivors& slice : slices) {
        inside.count += ops.extract(slice.keys, slice.count, range, narrow.data() + inside.count);
      }
      slices = {&inside, 1};
      left_out = above;
      narrowed = true;
    }
    const uint32_t middle = range.low + (range.high - range.low) / 2;
    const int64_t count = left_out + count_above(ops, slices, middle);
    if (count >= rank) {
      range.low = middle + 1;
      reaching = count;
    } else {
      range.high = middle;
      above = count;
    }
  }
  return {range.low, rank - above, reaching - above};
}

Cut find_cut(const VectorOps& ops, std::span<const Survivors> slices, int64_t rank, KeyRange range,
             int32_t& rounds) {
  const KthKey kth = find_kth(ops, slices, rank, range, rounds);
  if (kth.ties == kth.equal) return {kth.key, std::numeric_limits<int32_t>::max()};
  return {kth.key, tie_index(slices, kth.key, kth.ties)};
}

void sort_by_rank(const uint32_t* keys, int32_t* indices, int32_t count,
                  std::vector<uint64_t>& scratch) {
  constexpr int32_t kDigitBits = 8;
  constexpr uint64_t kMask = (1u << kDigitBits) - 1;
  if (count == 0) return;
  KeyRange range;
  for (int32_t i = 0; i < count; ++i) range.include({keys[i], keys[i]});
  const int32_t bits = std::bit_width(range.high - range.low);
  scratch.resize(std::max(scratch.size(), 2 * static_cast<size_t>(count)));
  uint64_t* from = scratch.data();
  uint64_t* to = from + count;
  // The distance from the best key ascends in rank order, and has no more digits than it needs.
  for (int32_t i = 0; i < count; ++i) {
    from[i] = static_cast<uint64_t>(range.high - keys[i]) << 32 | static_cast<uint32_t>(indices[i]);
  }
  for (int32_t shift = 32; shift < 32 + bits; shift += kDigitBits) {
    std::array<int32_t, kMask + 1> offsets{};
    for (int32_t i = 0; i < count; ++i) ++offsets[from[i] >> shift & kMask];
    int32_t sum = 0;
    for (int32_t& offset : offsets) sum += std::exchange(offset, sum);
    for (int32_t i = 0; i < count; ++i) to[offsets[from[i] >> shift & kMask]++] = from[i];
    std::swap(from, to);
  }
  for (int32_t i = 0; i < count; ++i) indices[i] = static_cast<int32_t>(from[i]);
}

}  // namespace gvr::cpu
