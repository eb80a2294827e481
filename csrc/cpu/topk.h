// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/params.h"

namespace gvr::cpu {

// Answers every row of `params` on torch's intra-op threads, as thread_tuning() of the caller asks.
void launch(const TopKParams& params);

}  // namespace gvr::cpu
