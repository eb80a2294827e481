// SPDX-License-Identifier: Apache-2.0
#include "winners.h"

#include <vector>

#include "scores.h"

namespace gvr::cpu {
namespace {

// A list with the key of its first entry that is not merged yet.
struct Head {
  const int32_t* entry;
  const int32_t* end;
  uint64_t key;
};

// What follows the winners of an output row.
template <ScoreType kType>
void write_padding(void* values, int32_t* indices, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    indices[i] = -1;
    store_raw<kType>(values, i, ScoreTraits<kType>::kMinusInf);
  }
}

template <ScoreType kType>
class RowMerge {
 public:
  RowMerge(const MergeParams& p, int64_t row) : p_(p), bias_(p.counts == nullptr ? 0 : 1) {
    ListWalk walk(p, row);
    for (int32_t rank = 0; rank < p.world; ++rank) {
      const WinnerList list = walk.next();
      heads_.push_back({list.indices, list.indices + list.size, 0});
      look(heads_.back());
    }
  }

  // The list that has the best entry of all, -1: only padding is left.
  int32_t best() const {
    int32_t best = -1;
    uint64_t key = kPaddingKey;
    for (int32_t rank = 0; rank < p_.world; ++rank) {
      if (heads_[rank].key <= key) continue;
      key = heads_[rank].key;
      best = rank;
    }
    return best;
  }

  int32_t index(int32_t rank) const { return *heads_[rank].entry - bias_; }
  uint32_t bits(int32_t rank) const { return static_cast<uint32_t>(heads_[rank].entry[p_.k]); }

  void advance(int32_t rank) {
    ++heads_[rank].entry;
    look(heads_[rank]);
  }

 private:
  void look(Head& head) {
    const int32_t index = head.entry == head.end ? -1 : *head.entry - bias_;
    if (index < 0) {
      head.key = kPaddingKey;
    } else {
      const auto bits = static_cast<uint32_t>(head.entry[p_.k]);
      head.key = rank_key(ordered_key(ScoreTraits<kType>::widen(bits)), index);
    }
  }

  const MergeParams& p_;
  const int32_t bias_;
  std::vector<Head> heads_;
};

template <ScoreType kType>
void merge_row(const MergeParams& p, int64_t row) {
  RowMerge<kType> merge(p, row);
  const int64_t first = row * p.k;
  int64_t found = first;
  for (int32_t place = 0; place < p.k; ++place) {
    const int32_t rank = merge.best();
    if (rank < 0) break;
    if (p.own_values == nullptr) {
      p.indices[found] = merge.index(rank);
      store_raw<kType>(p.values, found++, merge.bits(rank));
    } else if (rank == p.own) {
      p.indices[found] = p.own_indices[found];
      store_raw<kType>(p.values, found, load_raw<kType>(p.own_values, found));
      ++found;
    }
    merge.advance(rank);
  }
  write_padding<kType>(p.values, p.indices, found, first + p.k);
}

template <ScoreType kType>
void pack_row(const PackParams& p, int64_t row) {
  const int64_t offset = shard_offset(p.placement);
  const int32_t* indices = p.indices + row * p.k;
  int32_t* out = p.message + row * 2 * p.k;
  const Slots slots = own_slots(p, row);
  const int32_t bias = p.counts == nullptr ? 0 : 1;
  for (int64_t slot = 0; slot < p.k; ++slot) {
    const bool mine = slot >= slots.first && slot < slots.end;
    const int64_t i = slot - slots.first;
    out[slot] = mine ? global_index(p.placement, offset, indices[i]) + bias : 0;
    out[p.k + slot] = mine ? static_cast<int32_t>(load_raw<kType>(p.values, row * p.k + i)) : 0;
  }
}

template <ScoreType kType>
void key_row(const PackParams& p, int64_t row) {
  const int64_t offset = shard_offset(p.placement);
  for (int64_t i = row * p.k; i < (row + 1) * p.k; ++i) {
    const int32_t index = global_index(p.placement, offset, p.indices[i]);
    p.keys[i] = ascending_key<kType>(load_raw<kType>(p.values, i), index);
  }
}

template <ScoreType kType>
void keep_row(const KeepParams& p, int64_t row) {
  const int64_t first = row * p.k;
  const int64_t kept = first + bounded_count(p.counts[row], static_cast<uint32_t>(p.k));
  for (int64_t i = first; i < kept; ++i) {
    p.kept_indices[i] = p.indices[i];
    store_raw<kType>(p.kept_values, i, load_raw<kType>(p.values, i));
  }
  write_padding<kType>(p.kept_values, p.kept_indices, kept, first + p.k);
}

}  // namespace

void pack_winners(const PackParams& params, int64_t begin, int64_t end) {
  visit_dtype(params.dtype, [&]<ScoreType kType>() {
    for (int64_t row = begin; row < end; ++row) {
      params.keys == nullptr ? pack_row<kType>(params, row) : key_row<kType>(params, row);
    }
  });
}

void merge_winners(const MergeParams& params, int64_t begin, int64_t end) {
  visit_dtype(params.dtype, [&]<ScoreType kType>() {
    for (int64_t row = begin; row < end; ++row) merge_row<kType>(params, row);
  });
}

void keep_winners(const KeepParams& params, int64_t begin, int64_t end) {
  visit_dtype(params.dtype, [&]<ScoreType kType>() {
    for (int64_t row = begin; row < end; ++row) keep_row<kType>(params, row);
  });
}

void count_digits(const DigitParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    p.bound[row] = settled_bound(p, row);
    for (int32_t edge = 0; edge < p.edges; ++edge) {
      p.counts[row * p.edges + edge] = keys_before(p, row, p.bound[row], edge);
    }
  }
}

}  // namespace gvr::cpu
