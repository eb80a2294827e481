// SPDX-License-Identifier: Apache-2.0
#include "row.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>

#include "radix.h"
#include "scores.h"

namespace gvr::cpu {
namespace {

constexpr int32_t kChunk = 4096;         // scores whose survivors are fetched while still in L1
constexpr int32_t kVerifyPasses = 6;     // of `gvr`
constexpr int32_t kLeastSlice = 32768;   // scores that are worth waking a thread for
constexpr int32_t kGuessFrom = 1024;     // shorter rows are staged whole
constexpr size_t kKeptBytes = 8u << 20;  // staging memory kept between calls

int32_t clamp_to_int32(int64_t x) {
  return static_cast<int32_t>(std::min<int64_t>(x, std::numeric_limits<int32_t>::max()));
}

Limits row_limits(const Tuning& tuning, int32_t k, int32_t n) {
  const int64_t fresh = std::clamp<int64_t>(int64_t{2} * k, 4096, 16384);
  const int64_t wanted = tuning.staging > 0 ? std::max<int64_t>(tuning.staging, int64_t{k} + 32)
                                            : int64_t{2} * k + fresh;
  Limits limits{};
  limits.staging = clamp_to_int32(std::min<int64_t>(wanted, n));
  limits.chunk = tuning.chunk > 0 ? tuning.chunk : kChunk;
  limits.max_verify = tuning.max_verify > 0 ? tuning.max_verify : kVerifyPasses;
  return limits;
}

// Fetches the scores of `part` into the cache; true as soon as `done`, false at the end.
bool fetch_until(const std::atomic<bool>& done, const RowView& view, RowWindow part) {
  constexpr int64_t kStep = 4096;  // bytes
  const int32_t bytes = score_bytes(view.dtype);
  const auto* scores = static_cast<const char*>(view.scores);
  const int64_t end = int64_t{part.end} * bytes;
  for (int64_t at = int64_t{part.begin} * bytes; at < end; at += kStep) {
    if (done.load(std::memory_order_acquire)) return true;
    const int64_t stop = std::min(at + kStep, end);
    for (int64_t line = at; line < stop; line += kCacheLine)
      __builtin_prefetch(scores + line, 0, 2);
  }
  return done.load(std::memory_order_acquire);
}

}  // namespace

void RowSelector::answer(const Call& call, int64_t row) {
  const TopKParams& p = call.params;
  row_ = row;
  view_.scores = static_cast<const char*>(p.scores) + row * p.score_stride * score_bytes(p.dtype);
  view_.dtype = p.dtype;
  view_.window = row_window(p, row);
  hint_ = row_hint(p, row);
  indices_ = p.indices + row * p.indices_stride;
  stats_.fill(0);
  const int32_t n = view_.window.size();
  if (n <= p.k) {
    answer_short(call);
  } else {
    select(call);
  }
  if (p.stats != nullptr) {
    std::copy(stats_.begin(), stats_.end(), p.stats + row * int64_t{kStatColumns});
  }
}

void RowSelector::answer_short(const Call& call) {
  const int32_t n = view_.window.size();
  stats_[kStatPath] = static_cast<int32_t>(n == 0 ? Path::kEmpty : Path::kShort);
  if (n == 0) return emit(call, 0);
  cut_ = {0, std::numeric_limits<int32_t>::max()};
  std::iota(indices_, indices_ + n, view_.window.begin);
  if (call.params.sorted) {
    keys_.resize(n);
    for (int32_t i = 0; i < n; ++i) {
      keys_[i] = visit_dtype(call.params.dtype, [&]<ScoreType kType>() {
        return load_key<kType>(view_.scores, indices_[i]);
      });
    }
    sort_by_rank(keys_.data(), indices_, n, scratch_);
  }
  emit(call, n);
}

void RowSelector::select(const Call& call) {
  const TopKParams& p = call.params;
  const int32_t n = view_.window.size();
  const int32_t least = call.tuning.ctas_per_row > 0 ? 1 : kLeastSlice;
  slices_ = std::clamp(n / least, 1, call.slices);
  limits_ = row_limits(call.tuning, p.k, n);
  stages_.resize(std::max<size_t>(stages_.size(), slices_));
  stats_[kStatPath] = static_cast<int32_t>(p.algorithm == Algorithm::kRadix ? Path::kRadix
                                           : p.algorithm == Algorithm::kGvr ? Path::kGvr
                                                                            : Path::kStream);
  uint32_t floor = kFloorAll;
  int64_t admitted = 0;
  if (slices_ > 1 && p.algorithm != Algorithm::kRadix && p.algorithm != Algorithm::kGvr) {
    admitted = guess_and_collect(call, floor);
  } else {
    floor = first_floor(call, guess_);
    if (p.algorithm == Algorithm::kGvr) floor = verify(call, floor);
    admitted = collect(call, floor);
  }
  while (admitted < p.k) {
    // The second correction gives up on the sample: some rows hide their winners from it.
    const bool sampled = stats_[kStatUndershoots]++ == 0;
    floor = sampled ? std::min(guess_.corrected(floor, admitted, int64_t{2} * p.k), floor - 1)
                    : kFloorAll;
    admitted = collect(call, floor);
  }
  refine(call);
  emit(call, p.k);
}

uint32_t RowSelector::first_floor(const Call& call, Guess& guess) {
  const TopKParams& p = call.params;
  if (p.algorithm == Algorithm::kRadix) {
    return radix_floor(p.dtype, view_, p.k, limits_.staging, stats_[kStatPasses]);
  }
  const bool forced = call.tuning.force_undershoot != 0;
  const bool short_row = view_.window.size() <= std::max<int64_t>(kGuessFrom, int64_t{2} * p.k);
  if (short_row && !forced && p.algorithm != Algorithm::kGvr) return kFloorAll;
  guess.draw(call.ops, view_, p.k);
  const bool use_hint = hint_.size > 0 && call.tuning.ignore_hint == 0;
  if (use_hint && (p.algorithm == Algorithm::kGvr || guess.wants_hint())) {
    guess.take_hint(view_, hint_, p.hint_offset);
  }
  return forced ? kKeyNan : guess.floor();
}

// Counts until the floor admits between k scores and what the staging area holds. When that takes
// too long, or no such floor exists, the rising floor of the collecting pass is the continuation.
uint32_t RowSelector::verify(const Call& call, uint32_t floor) {
  const int64_t k = call.params.k;
  const int64_t most = std::max(k, (k + limits_.staging) / 2);
  uint32_t low = kFloorAll;  // admits too many
  uint32_t high = kKeyNan;   // admits too few
  for (int32_t pass = 0; pass < limits_.max_verify && high - low > 1; ++pass) {
    const int64_t admitted = count(call, floor);
    ++stats_[kStatPasses];
    if (admitted >= k && admitted <= most) return floor;
    if (admitted < k) {
      high = floor;
      ++stats_[kStatUndershoots];
    } else {
      low = floor;
    }
    const uint32_t next = guess_.corrected(floor, admitted, (k + most) / 2);
    // Every other step halves the bracket, so that no distribution can stall the search.
    floor = next > low && next < high && pass % 2 == 0 ? next : low + (high - low) / 2;
  }
  return low;
}

RowWindow RowSelector::slice(int32_t s) const {
  const int64_t n = view_.window.size();
  return {static_cast<int32_t>(view_.window.begin + n * s / slices_),
          static_cast<int32_t>(view_.window.begin + n * (s + 1) / slices_)};
}

template <typename Body>
void RowSelector::for_each_slice(const Call& call, const Body& body) {
  if (slices_ == 1) return body(0);
  call.runtime.parallel_for(slices_, 1, [&](int64_t begin, int64_t end) {
    const FloatModeGuard float_mode;
    for (int64_t s = begin; s < end; ++s) body(static_cast<int32_t>(s));
  });
}

int64_t RowSelector::count(const Call& call, uint32_t floor) {
  if (floor == kKeyNan) return 0;
  counts_.assign(slices_, 0);
  for_each_slice(call, [&](int32_t s) {
    const RowWindow part = slice(s);
    counts_[s] = call.ops.count(view_.scores, part.begin, part.end, floor);
  });
  return std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
}

int64_t RowSelector::collect(const Call& call, uint32_t floor) {
  for_each_slice(call, [&](int32_t s) {
    const RowWindow part = slice(s);
    stages_[s].reset(call.ops, limits_, call.params.k, floor);
    stages_[s].append(view_.scores, part.begin, part.end);
  });
  return admitted();
}

// One parallel region for both: the first slice's thread guesses, the others fetch their scores
// meanwhile. None of them waits, because nothing promises that slices run at the same time: who has
// fetched everything before there is a guess makes the same guess again.
int64_t RowSelector::guess_and_collect(const Call& call, uint32_t& floor) {
  std::atomic<bool> guessed{false};
  floors_.assign(slices_, kFloorAll);
  for_each_slice(call, [&](int32_t s) {
    const RowWindow part = slice(s);
    uint32_t own_floor = 0;
    if (s == 0) {
      floor = own_floor = first_floor(call, guess_);
      guessed.store(true, std::memory_order_release);
    } else if (fetch_until(guessed, view_, part)) {
      own_floor = floor;
    } else {
      Guess guess;
      own_floor = first_floor(call, guess);
    }
    floors_[s] = own_floor;
    stages_[s].reset(call.ops, limits_, call.params.k, own_floor);
    stages_[s].append(view_.scores, part.begin, part.end);
  });
  // A hint that somebody rewrites meanwhile gives guesses that differ, and a slice with a higher
  // floor has refused what the others' survivors do not make up for.
  const uint32_t least = *std::min_element(floors_.begin(), floors_.end());
  if (std::any_of(floors_.begin(), floors_.end(), [&](uint32_t f) { return f != least; })) {
    floor = least;
    return collect(call, floor);
  }
  return admitted();
}

int64_t RowSelector::admitted() {
  ++stats_[kStatPasses];
  int64_t sum = 0;
  for (int32_t s = 0; s < slices_; ++s) sum += stages_[s].admitted();
  return sum;
}

// Leaves the k winners in indices_, ascending, or in rank order where that is asked for.
void RowSelector::refine(const Call& call) {
  const TopKParams& p = call.params;
  KeyRange range;
  int64_t admitted = 0;
  survivors_.clear();
  for (int32_t s = 0; s < slices_; ++s) {
    Stage& stage = stages_[s];
    survivors_.push_back(stage.survivors());
    range.include(stage.range());
    admitted += stage.admitted();
    stats_[kStatOverflows] += stage.overflows();
    stats_[kStatRefineRounds] += stage.refine_rounds();
  }
  stats_[kStatSurvivors] = clamp_to_int32(admitted);
  cut_ = find_cut(call.ops, survivors_, p.k, range, stats_[kStatRefineRounds]);
  if (p.sorted) keys_.resize(p.k);
  int32_t found = 0;
  for (const Survivors& staged : survivors_) {
    const int32_t kept = call.ops.keep(staged.keys, staged.indices, staged.count, cut_);
    std::copy_n(staged.indices, kept, indices_ + found);
    if (p.sorted) std::copy_n(staged.keys, kept, keys_.begin() + found);
    found += kept;
  }
  if (p.sorted) sort_by_rank(keys_.data(), indices_, found, scratch_);
}

void RowSelector::emit(const Call& call, int32_t found) {
  const TopKParams& p = call.params;
  std::fill(indices_ + found, indices_ + p.k, -1);
  if (p.values != nullptr) {
    char* values = static_cast<char*>(p.values) + row_ * p.values_stride * score_bytes(p.dtype);
    visit_dtype(p.dtype, [&]<ScoreType kType>() {
      for (int32_t i = 0; i < found; ++i) {
        store_raw<kType>(values, i, load_raw<kType>(view_.scores, indices_[i]));
      }
      for (int32_t i = found; i < p.k; ++i) {
        store_raw<kType>(values, i, ScoreTraits<kType>::kMinusInf);
      }
    });
  }
  if (found == 0) return;
  const bool stores = row_state(p, row_).entry != nullptr;
  if (hint_.size > 0 && (stores || p.stats != nullptr)) count_hits(call);
  if (stores) write_state(call, found);
}

void RowSelector::count_hits(const Call& call) {
  constexpr int32_t kBatch = 256;
  std::array<int32_t, kBatch> positions;
  std::array<uint32_t, kBatch> keys;
  int32_t valid = 0;
  int32_t hits = 0;
  for (int64_t begin = 0; begin < hint_.size; begin += kBatch) {
    const int64_t end = std::min<int64_t>(begin + kBatch, hint_.size);
    int32_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
      positions[count] = hinted_position(hint_.indices[i], call.params.hint_offset, view_.window);
      count += positions[count] >= 0;
    }
    valid += count;
    if (view_.window.size() <= call.params.k) continue;
    call.ops.gather_keys(view_.scores, positions.data(), count, keys.data());
    for (int32_t i = 0; i < count; ++i) {
      hits += rank_key(keys[i], positions[i]) >= rank_key(cut_.key, cut_.last_index);
    }
  }
  stats_[kStatHintValid] = valid;
  stats_[kStatHintHits] = view_.window.size() <= call.params.k ? valid : hits;
}

void RowSelector::write_state(const Call& call, int32_t found) {
  const TopKParams& p = call.params;
  int32_t* entry = row_state(p, row_).entry;
  const int32_t stored = hint_count(p, found);
  // A short row has no k-th score: everything of it is admitted.
  const float threshold = key_to_float(view_.window.size() <= p.k ? kKeyMinusInf : cut_.key);
  entry[kStateHits] = hint_.size > 0 ? stats_[kStatHintHits] : -1;
  entry[kStateCount] = stored;
  entry[kStateThreshold] = static_cast<int32_t>(float_bits(threshold));
  for (int32_t i = 0; i < found; ++i) {
    const int32_t at = hint_at(p, static_cast<uint32_t>(i));
    if (at >= 0) entry[kStateHeader + at] = indices_[i];
  }
}

void RowSelector::trim() {
  size_t bytes = 0;
  for (const Stage& stage : stages_) bytes += stage.bytes();
  if (bytes > kKeptBytes) *this = RowSelector();
}

}  // namespace gvr::cpu
