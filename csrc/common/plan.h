// SPDX-License-Identifier: Apache-2.0
// The choice of kernel: one pure function of the shape and the device, callable without a GPU.
#pragma once

#include <cstdint>

#include "params.h"

namespace gvr {

// What the choice may depend on. Row lengths live on the device and are not part of it: a captured
// CUDA graph must stay right when they change.
struct Shape {
  int64_t rows;
  int32_t n;
  int32_t k;
  ScoreType dtype;
  bool has_hint;  // a hint or a state
  Algorithm algorithm;
};

struct DeviceInfo {
  int32_t sm_count;
  int32_t capability;              // 10 * major + minor
  int32_t shared_bytes_per_block;  // opt-in limit
  int32_t max_cluster;             // 1 where the device has no thread block clusters
};

// Overrides for tests and benchmarks; 0 leaves the choice to make_plan. They change which path a
// row takes, never the answer.
struct Tuning {
  int32_t ctas_per_row = 0;      // power of two, clamped to the device's cluster limit
  int32_t threads = 0;           // per CTA of kResident: up to 512, or more
  int32_t staging = 0;           // survivors that one CTA (or CPU slice) can hold
  int32_t chunk = 0;             // scores between two looks at the staging area
  int32_t bins = 0;              // of 256 bins, those that divide the guessed range of scores
  int32_t rank_capacity = 0;     // crossing-bin size up to which the exact ranking is direct
  int32_t max_verify = 0;        // counting passes of `gvr` before it continues as `stream`
  int32_t force_undershoot = 0;  // 1: start from a threshold that admits nothing
  int32_t ignore_hint = 0;       // 1: guess from the row alone even when a hint is given
};

struct Plan {
  Algorithm family;      // kGvr, kStream, kRadix or kResident
  int32_t ctas_per_row;  // cluster size; 1 for kRadix
  int32_t staging;       // entries per CTA
  int32_t chunk;         // scores per CTA between two looks at the staging area
  float bin_share;       // of the bins, what divides the guessed range of scores
  int32_t rank_capacity;
  int32_t max_verify;
  int32_t threads;  // kResident: per CTA
  int32_t slice;    // kResident: most scores of one CTA
  bool own_lists;   // kResident: lists of winners beside the slice, where values are wanted
  bool use_hint;
  bool overlaps;  // may start before the kernel in front of it has ended
  bool force_undershoot;
};

inline constexpr int32_t kMaxCluster = 16;      // non-portable cluster size of sm_90 and later
inline constexpr int32_t kThreads = 256;        // per CTA of kGvr and kStream
inline constexpr int32_t kTinyBlock = 256;      // per CTA of kResident, for many short rows
inline constexpr int32_t kSmallBlock = 512;     // the same, as a rule
inline constexpr int32_t kLargeBlock = 1024;    // the same for slices that need it
inline constexpr int32_t kResidentScores = 32;  // per thread of kResident: bits of a mask
inline constexpr int32_t kMaxStagedK = 8192;    // a larger K is answered by kRadix
inline constexpr int32_t kMaxFusedSort = 4096;  // a larger K is sorted by ATen on the GPU

Plan make_plan(const Shape& shape, const DeviceInfo& device, const Tuning& tuning);

// Tuning of the calling thread; zeros unless a test or a benchmark set it.
Tuning& thread_tuning();

const char* algorithm_name(Algorithm algorithm);
// Throws std::invalid_argument that lists the known names.
Algorithm algorithm_from_name(const char* name);

}  // namespace gvr
