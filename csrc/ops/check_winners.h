// SPDX-License-Identifier: Apache-2.0
// check.h for operators on lists of winners that ranks exchange.
#pragma once

#include <vector>

#include "../common/winners.h"
#include "check.h"

namespace gvr {

// Where a shard stands in the whole row, as the schema has it.
struct ShardArguments {
  int64_t offset;
  const OptionalTensor& device_offset;
  int64_t page;
  int64_t rank;
  int64_t world;
};

// Checked parameters of an operation on lists of winners, without its outputs, and the dense
// tensors that they point to.
template <class Params>
struct CheckedLists {
  Params params;
  std::vector<at::Tensor> owners;
};

CheckedLists<PackParams> check_pack(const at::Tensor& values, const at::Tensor& indices,
                                    const ShardArguments& shard, at::DeviceType backend);

// `counts`, with which a message holds the winners of one rank only.
void check_slots(CheckedLists<PackParams>& call, const at::Tensor& counts, int64_t list);

CheckedLists<MergeParams> check_gathered(const at::Tensor& gathered, at::DeviceType backend);

CheckedLists<MergeParams> check_packed(const at::Tensor& packed, const at::Tensor& counts,
                                       at::DeviceType backend);

void check_own(CheckedLists<MergeParams>& call, const at::Tensor& values, const at::Tensor& indices,
               int64_t rank);

CheckedLists<KeepParams> check_keep(const at::Tensor& values, const at::Tensor& indices,
                                    const at::Tensor& counts, at::DeviceType backend);

// Without the first two tensors it is the first round.
CheckedLists<DigitParams> check_digits(const at::Tensor& keys, const OptionalTensor& bound,
                                       const OptionalTensor& before, int64_t last_shift,
                                       int64_t shift, int64_t bits, at::DeviceType backend);

}  // namespace gvr
