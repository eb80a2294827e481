// SPDX-License-Identifier: Apache-2.0
// The operators on lists of winners that ranks exchange: check, allocate, launch.
#pragma once

#include <torch/library.h>

#include "../common/winners.h"

namespace gvr {

// Each answers all rows; returns after the work is done (CPU) or enqueued (CUDA).
struct WinnersBackend {
  void (*pack)(const PackParams& params);
  void (*merge)(const MergeParams& params);
  void (*keep)(const KeepParams& params);
  void (*digits)(const DigitParams& params);
};

void register_winners(torch::Library& library, at::DeviceType backend,
                      const WinnersBackend& functions);

}  // namespace gvr
