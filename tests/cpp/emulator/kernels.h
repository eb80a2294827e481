// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels, run by the emulator.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "common/plan.h"

namespace emulator {

// One call as the launchers make it, without the second launches (sorting, comparing).
void run_kernel(const gvr::TopKParams& params, const gvr::Plan& plan, uint64_t seed);

}  // namespace emulator
