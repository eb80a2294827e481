// SPDX-License-Identifier: Apache-2.0
// Lists of winners that ranks exchange, on the CPU: rows [begin, end) of each operation.
#pragma once

#include "../common/winners.h"

namespace gvr::cpu {

void pack_winners(const PackParams& params, int64_t begin, int64_t end);
void merge_winners(const MergeParams& params, int64_t begin, int64_t end);
void keep_winners(const KeepParams& params, int64_t begin, int64_t end);
void count_digits(const DigitParams& params, int64_t begin, int64_t end);

}  // namespace gvr::cpu
