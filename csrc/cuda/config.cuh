// SPDX-License-Identifier: Apache-2.0
// Constants of the CUDA kernels. Every figure that was tuned names its entry in
// benchmarks/NOTES.md.
#pragma once

#include <cstdint>

#include "../common/plan.h"

namespace gvr::cuda {

struct Config {
  static constexpr int kThreads = gvr::kThreads;  // per CTA of gvr and stream
  static constexpr int kCtasPerSm = 3;  // 80 registers per thread; fewer make the kernels spill
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kBins = 256;  // one histogram bin per thread
  static constexpr int kBinBits = 8;
  static constexpr int kRankCapacity = 256;  // crossing-bin entries ranked by comparison
  static constexpr int kUnroll = 4;          // 16-byte loads in flight per thread while streaming
  static constexpr int kRungs = 8;           // candidate thresholds of the guess
  static constexpr int kRadixThreads = 1024;
  static constexpr int kRadixBits = 11;
  static constexpr int kSortThreads = 512;
};
static_assert(Config::kBins == 1 << Config::kBinBits && Config::kBins == Config::kThreads);

}  // namespace gvr::cuda
