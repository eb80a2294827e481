// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels, run by the emulator.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "common/plan.h"
#include "common/winners.h"

namespace emulator {

// One call as the launchers make it, without the second launches (sorting, comparing).
void run_kernel(const gvr::TopKParams& params, const gvr::Plan& plan, uint64_t seed);

// The merge of sorted lists, and a list's own part of it; lists of fp32 scores.
void run_merge(const gvr::MergeParams& params, uint64_t seed);
void run_pack(const gvr::PackParams& params, uint64_t seed);

}  // namespace emulator
