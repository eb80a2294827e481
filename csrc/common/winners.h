// SPDX-License-Identifier: Apache-2.0
// What the ranks of a sharded selection exchange: lists of winners, each best first by the total
// order of order.h. A message holds a list of every row as int32 [rows, 2, k]: indices in the whole
// row, then the storage bits of the scores. An index -1 is padding and comes last.
#pragma once

#include <cstdint>

#include "order.h"

namespace gvr {

// Local index -> index in the whole row, whose pages of keys are dealt out in turn. One block per
// rank is rank 0 of 1 behind an offset, which may be known to the device only.
struct ShardPlacement {
  int64_t offset = 0;
  const int64_t* device_offset = nullptr;  // one number, added as well; null: nothing
  int32_t page = 1;
  int32_t rank = 0;
  int32_t world = 1;
};

GVR_HOST_DEVICE int64_t shard_offset(const ShardPlacement& p) {
  return p.device_offset == nullptr ? p.offset : p.offset + *p.device_offset;
}

// `offset` as shard_offset gives it. The whole row has fewer than 2^31 keys.
GVR_HOST_DEVICE int32_t global_index(const ShardPlacement& p, int64_t offset, int32_t local) {
  if (local < 0) return -1;
  const int64_t page = local / p.page;
  const int64_t within = local % p.page;
  return static_cast<int32_t>((page * p.world + p.rank) * p.page + within + offset);
}

// A rank's own winners -> its message, or their keys. Everything is dense, [rows, k] or
// [rows, 2, k].
struct PackParams {
  const void* values = nullptr;
  const int32_t* indices = nullptr;
  int64_t rows = 0;
  int32_t k = 0;
  ScoreType dtype = ScoreType::kFloat32;
  ShardPlacement placement;
  int32_t* message = nullptr;
  int64_t* keys = nullptr;  // [rows, k]; null: the message is wanted
  // [lists, rows]: how many entries of each rank win. Then only those of list `own` are written,
  // behind the winners of the lists before it, with indices one higher; all else is 0, so that the
  // sum of all ranks' messages holds the winners of all. Null: the list as it is.
  const int64_t* counts = nullptr;
  int32_t own = 0;
};

// Sorted lists -> the k best of all.
struct MergeParams {
  // The list of rank j and row r begins at lists + j * list_stride + r * 2 * k.
  const int32_t* lists = nullptr;
  int64_t list_stride = 0;
  // [world, rows]: the lists follow each other in one message and have these lengths, and indices
  // are one higher, as PackParams says. Null: lists of k entries.
  const int64_t* counts = nullptr;
  int64_t rows = 0;
  int32_t k = 0;
  int32_t world = 0;
  ScoreType dtype = ScoreType::kFloat32;
  void* values = nullptr;      // [rows, k]
  int32_t* indices = nullptr;  // [rows, k]
  // Not null: the answer is the part of list `own` that wins, by its own values and indices.
  const void* own_values = nullptr;
  const int32_t* own_indices = nullptr;
  int32_t own = 0;
};

// A rank's winners are a prefix of its list: the rest becomes padding.
struct KeepParams {
  const void* values = nullptr;
  const int32_t* indices = nullptr;
  const int64_t* counts = nullptr;  // [rows]
  int64_t rows = 0;
  int32_t k = 0;
  ScoreType dtype = ScoreType::kFloat32;
  void* kept_values = nullptr;
  int32_t* kept_indices = nullptr;
};

// Counts are data: whatever they say, nothing leads out of a list or a message.
GVR_HOST_DEVICE uint32_t bounded_count(int64_t count, uint32_t most) {
  if (count < 0) return 0;
  return count < most ? static_cast<uint32_t>(count) : most;
}

// The part of a message, [first, end) of k, that a rank's winners fill.
struct Slots {
  int64_t first, end;
};

GVR_HOST_DEVICE Slots own_slots(const PackParams& p, int64_t row) {
  if (p.counts == nullptr) return {0, p.k};
  const auto most = static_cast<uint32_t>(p.k);
  int64_t first = 0;
  for (int64_t list = 0; list < p.own; ++list) {
    first += bounded_count(p.counts[list * p.rows + row], most);
  }
  return {first, first + bounded_count(p.counts[p.own * p.rows + row], most)};
}

// The order of winners as one number, ascending from the best: the index in the low 31 bits, above
// them how far the score is from NaN, in as many bits as the dtype has.
inline constexpr int64_t kLastKey = 0x7FFFFFFFFFFFFFFF;  // of padding

template <ScoreType kType>
GVR_HOST_DEVICE int64_t ascending_key(uint32_t raw, int32_t index) {
  constexpr uint32_t kSign = 1u << (8 * sizeof(typename ScoreTraits<kType>::Storage) - 1);
  constexpr int64_t kInfinity = ScoreTraits<kType>::kMinusInf - kSign;
  const int64_t magnitude = raw & (kSign - 1);
  int64_t level = (raw & kSign) != 0 ? -magnitude : magnitude;
  if (magnitude > kInfinity) level = kInfinity + 1;
  return index < 0 ? kLastKey : ((kInfinity + 1 - level) << 31) + index;
}

// A round of the search for the K-th key of all ranks, digit by digit from the highest on.
struct DigitParams {
  const int64_t* keys = nullptr;  // [rows, k], ascending
  int64_t rows = 0;
  int32_t k = 0;
  // [rows]: the bound that the last round started from; null: this is the first.
  const int64_t* last_bound = nullptr;
  // [rows, last_edges]: how many keys of all ranks lie before each edge of the last round.
  const int32_t* before = nullptr;
  int32_t last_edges = 0;
  int32_t last_shift = 0;
  int32_t edges = 0;          // one less than digits: the last one needs no edge
  int32_t shift = 0;          // of the digit
  int64_t* bound = nullptr;   // [rows]: with the last round's digit
  int32_t* counts = nullptr;  // [rows, edges]: keys before each edge
};

// How many of n ascending numbers lie below the limit.
template <class T>
GVR_HOST_DEVICE uint32_t count_below(const T* ascending, uint32_t n, T limit) {
  uint32_t low = 0, high = n;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (ascending[middle] < limit) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// `steps` digits of weight 2^shift further; unsigned, since a bound is data.
GVR_HOST_DEVICE int64_t step_key(int64_t bound, uint32_t steps, int32_t shift) {
  return static_cast<int64_t>(static_cast<uint64_t>(bound) + (uint64_t{steps} << shift));
}

GVR_HOST_DEVICE int64_t settled_bound(const DigitParams& p, int64_t row) {
  if (p.last_bound == nullptr) return 0;
  const auto edges = static_cast<uint32_t>(p.last_edges);
  const uint32_t digit = count_below(p.before + row * p.last_edges, edges, p.k);
  return step_key(p.last_bound[row], digit, p.last_shift);
}

GVR_HOST_DEVICE int32_t keys_before(const DigitParams& p, int64_t row, int64_t bound,
                                    uint32_t edge) {
  const auto k = static_cast<uint32_t>(p.k);
  const int64_t limit = step_key(bound, edge + 1, p.shift);
  return static_cast<int32_t>(count_below(p.keys + row * p.k, k, limit));
}

// Behind the key of every score, which is at least kKeyMinusInf << 32.
inline constexpr uint64_t kPaddingKey = 1;

struct WinnerList {
  const int32_t* indices;  // the bits are k behind
  uint32_t size;
};

// The lists of one row, in the order of ranks.
class ListWalk {
 public:
  GVR_HOST_DEVICE ListWalk(const MergeParams& p, int64_t row)
      : p_(p), row_(row), next_(p.lists + row * 2 * p.k) {}

  GVR_HOST_DEVICE WinnerList next() {
    auto size = static_cast<uint32_t>(p_.k) - before_;
    // The last of lists that follow each other ends in the padding of all.
    if (p_.counts != nullptr && rank_ + 1 < p_.world) {
      size = bounded_count(p_.counts[rank_ * p_.rows + row_], size);
    }
    const WinnerList list{next_, size};
    ++rank_;
    if (p_.counts == nullptr) {
      next_ += p_.list_stride;
    } else {
      next_ += size;
      before_ += size;
    }
    return list;
  }

  // Passes over the list of rank `own`.
  GVR_HOST_DEVICE WinnerList next_but(int own) {
    if (rank_ == own) next();
    return next();
  }

  GVR_HOST_DEVICE int rank() const { return rank_; }

 private:
  const MergeParams& p_;
  int64_t row_;
  const int32_t* next_;
  uint32_t before_ = 0;  // entries of the lists before, where lists follow each other
  int rank_ = 0;
};

}  // namespace gvr
