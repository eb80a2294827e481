// SPDX-License-Identifier: Apache-2.0
// What the operators do on every backend: check, allocate, launch. A backend brings `launch`.
#pragma once

#include <torch/library.h>

#include "../common/params.h"

namespace gvr {

// Answers every row of `params`; returns after the work is done (CPU) or enqueued (CUDA).
using Launch = void (*)(const TopKParams& params);

void register_backend(torch::Library& library, at::DeviceType backend, Launch launch);

}  // namespace gvr
