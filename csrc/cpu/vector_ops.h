// SPDX-License-Identifier: Apache-2.0
// The loops that touch many scores, one implementation per instruction set, chosen at run
// time so that one build serves every machine. All of them speak in ordered keys (order.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/order.h"

namespace gvr::cpu {

enum class Isa : int32_t { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

// Stores are whole vectors: this many entries past the last one written must exist.
inline constexpr int32_t kVectorSlack = 16;

// Cold rows wait for memory: the prefetchers of the processor stop at page ends, so the loops that
// stream a row ask for `kBytes` this far ahead themselves. Measured: 79 to 47 us for 128K scores,
// no loss where the row is in the L2 cache. Prefetching beyond the row is harmless.
inline constexpr int64_t kPrefetchDistance = 2048;
inline constexpr int64_t kCacheLine = 64;

// For a loop that is about to read `kScores` scores from index `i` on.
template <ScoreType kType, int32_t kScores>
inline void prefetch_ahead(const void* row, int64_t i) {
  constexpr auto kBytes = int64_t{sizeof(typename ScoreTraits<kType>::Storage)};
  const char* at = static_cast<const char*>(row) + i * kBytes + kPrefetchDistance;
  for (int64_t line = 0; line < kScores * kBytes; line += kCacheLine) __builtin_prefetch(at + line);
}

struct KeyRange {
  uint32_t low = kKeyNan;
  uint32_t high = 0;
  void include(KeyRange other) {
    low = other.low < low ? other.low : low;
    high = other.high > high ? other.high : high;
  }
};

// A floor admits the keys above it. kKeyNan admits nothing, kFloorAll every score.
inline constexpr uint32_t kFloorAll = kKeyMinusInf - 1;

// The floor whose least admitted key is `key`.
inline uint32_t floor_under(uint32_t key) { return key > kKeyMinusInf ? key - 1 : kFloorAll; }

// The last winner. Winners are the keys above `key`, and those equal to it up to `last_index`.
struct Cut {
  uint32_t key;
  int32_t last_index;
};

struct VectorOps {
  // Indices in [begin, end) of the scores above `floor`, ascending; returns how many.
  int32_t (*collect)(const void* row, int32_t begin, int32_t end, uint32_t floor, int32_t* indices);
  // The same without writing them.
  int32_t (*count)(const void* row, int32_t begin, int32_t end, uint32_t floor);
  // Keys of the scores at `indices`. A row has at least two scores: with 16 bits each they are
  // fetched in pairs.
  KeyRange (*gather_keys)(const void* row, const int32_t* indices, int32_t count, uint32_t* keys);
  // How many keys are above `floor`.
  int32_t (*count_keys)(const uint32_t* keys, int32_t count, uint32_t floor);
  // Copies the keys inside `range`; returns how many.
  int32_t (*extract)(const uint32_t* keys, int32_t count, KeyRange range, uint32_t* inside);
  // Drops, in order and in place, the entries that rank below `cut`; returns how many remain.
  int32_t (*keep)(uint32_t* keys, int32_t* indices, int32_t count, Cut cut);
};

// `isa` is a wish: the best set that the machine has and that does not exceed it is used.
const VectorOps& vector_ops(ScoreType dtype, Isa isa);

// The score f such that "not (x <= f)" holds for exactly the scores x above `floor`, NaN included.
// Comparing with NaN admits everything. Requires floor < kKeyNan.
inline float floor_score(uint32_t floor) {
  if (floor < kKeyMinusInf) return bits_float(0x7FC00000u);
  if (floor >= kKeyPlusInf) return bits_float(0x7F800000u);
  // The key between the largest negative number and zero would read as -0.0, which equals +0.0.
  return key_to_float(floor == kKeyZero - 1 ? kKeyZero - 2 : floor);
}

#if defined(__x86_64__)
const VectorOps& vector_ops_avx2(ScoreType dtype);
const VectorOps& vector_ops_avx512(ScoreType dtype);
#endif

// Comparisons must see subnormal scores as they are, whatever the caller's floating-point mode
// (torch.set_flush_denormal). One per thread and task.
class FloatModeGuard {
 public:
  FloatModeGuard();
  ~FloatModeGuard();
  FloatModeGuard(const FloatModeGuard&) = delete;
  FloatModeGuard& operator=(const FloatModeGuard&) = delete;

 private:
  uint32_t saved_;
};

}  // namespace gvr::cpu
