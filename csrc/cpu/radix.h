// SPDX-License-Identifier: Apache-2.0
// Radix: the hint-free baseline. Histograms of key digits over the whole row.
#pragma once

#include <cstdint>

#include "guess.h"

namespace gvr::cpu {

// A floor that admits at least k scores, and at most `staging` unless a single key is that common.
// `passes` counts the readings of the row.
uint32_t radix_floor(ScoreType dtype, const RowView& row, int32_t k, int32_t staging,
                     int32_t& passes);

}  // namespace gvr::cpu
