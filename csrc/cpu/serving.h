// SPDX-License-Identifier: Apache-2.0
// What a server wants beside the selection: slots with one owner, places in the KV cache, and the
// difference to the stored answer.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/params.h"

namespace gvr::cpu {

// The slot of every group, -1 for none. Where groups share one, the last that has a valid score
// gets it: then no two threads ever touch the same state entries.
std::vector<int64_t> claim_slots(const TopKParams& p);

// kv.out of a row whose indices are finished.
void write_places(const TopKParams& p, int64_t row);

// The positions stored in `slot` for the draft that its last commit accepted, ascending and
// distinct.
void read_previous(const TopKParams& p, int64_t slot, std::vector<int32_t>& previous);

// difference of a row whose indices are finished; `previous` as read before the group's first row.
void write_difference(const TopKParams& p, int64_t row, const std::vector<int32_t>& previous);

}  // namespace gvr::cpu
