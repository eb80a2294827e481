// SPDX-License-Identifier: Apache-2.0
#include "check_winners.h"

#include <c10/util/Exception.h>

#include <limits>

namespace gvr {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostRanks = 65535;  // blocks of a grid's second dimension

void check_backend(const at::Tensor& tensor, const char* name, at::DeviceType backend) {
  TORCH_CHECK_VALUE(tensor.device().type() == backend, name, ": got a tensor on ", tensor.device(),
                    ", need one on ", backend, " like the other tensors of the call");
}

// Dense memory of `tensor`, which has to have this dtype, device and shape.
template <class T, class Params>
const T* dense(CheckedLists<Params>& call, const at::Tensor& tensor, const char* name,
               at::ScalarType dtype, at::Device device, at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": got dtype ", tensor.scalar_type(),
                   ", need ", dtype);
  TORCH_CHECK_VALUE(tensor.device() == device, name, ": got a tensor on ", tensor.device(),
                    ", need the device of the other tensors (", device, ")");
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, ": got shape ", tensor.sizes(), ", need ",
                    shape);
  call.owners.push_back(tensor.contiguous());
  return static_cast<const T*>(call.owners.back().const_data_ptr());
}

// values [rows, k] and their indices.
template <class Params>
void check_lists(CheckedLists<Params>& call, const at::Tensor& values, const at::Tensor& indices,
                 at::DeviceType backend) {
  Params& p = call.params;
  check_backend(values, "values", backend);
  p.dtype = check_score_type(values.scalar_type(), "values");
  TORCH_CHECK_VALUE(values.dim() == 2 && values.size(1) >= 1 && values.size(1) <= kInt32Max,
                    "values: got shape ", values.sizes(), ", need [rows, k] with 1 <= k < 2^31");
  p.rows = values.size(0);
  p.k = static_cast<int32_t>(values.size(1));
  p.values =
      dense<void>(call, values, "values", values.scalar_type(), values.device(), values.sizes());
  p.indices = dense<int32_t>(call, indices, "indices", at::kInt, values.device(), values.sizes());
}

void check_ranks(int64_t ranks, const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(ranks >= 1 && ranks <= kMostRanks, name, ": got shape ", tensor.sizes(),
                    ", need 1 to ", kMostRanks, " ranks in its first dimension");
}

void check_list(int64_t list, int64_t lists, const char* name) {
  TORCH_CHECK_VALUE(list >= 0 && list < lists, name, ": got ", list, ", need 0 <= ", name, " < ",
                    lists);
}

// A message with lists of k entries: its last two dimensions are [2, k].
void check_message(const at::Tensor& message, const char* name, const char* need, int64_t dims,
                   at::DeviceType backend) {
  check_backend(message, name, backend);
  TORCH_CHECK_VALUE(message.dim() == dims && message.size(-2) == 2 && message.size(-1) >= 1 &&
                        message.size(-1) <= kInt32Max,
                    name, ": got shape ", message.sizes(), ", need ", need, " with 1 <= k < 2^31");
}

// Keys are 63-bit numbers.
int32_t check_bits(int64_t given, int64_t most, const char* name) {
  TORCH_CHECK_VALUE(given >= 0 && given <= most, name, ": got ", given, ", need 0 <= ", name,
                    " <= ", most);
  return static_cast<int32_t>(given);
}

}  // namespace

CheckedLists<PackParams> check_pack(const at::Tensor& values, const at::Tensor& indices,
                                    const ShardArguments& shard, at::DeviceType backend) {
  CheckedLists<PackParams> call;
  check_lists(call, values, indices, backend);
  ShardPlacement& p = call.params.placement;
  TORCH_CHECK_VALUE(shard.offset >= 0 && shard.offset <= kInt32Max, "offset: got ", shard.offset,
                    ", need 0 <= offset < 2^31");
  TORCH_CHECK_VALUE(shard.page >= 1 && shard.page <= kInt32Max, "page: got ", shard.page,
                    ", need 1 <= page < 2^31");
  TORCH_CHECK_VALUE(shard.world >= 1 && shard.world <= kInt32Max, "world: got ", shard.world,
                    ", need 1 <= world < 2^31");
  check_list(shard.rank, shard.world, "rank");
  p.offset = shard.offset;
  p.page = static_cast<int32_t>(shard.page);
  p.rank = static_cast<int32_t>(shard.rank);
  p.world = static_cast<int32_t>(shard.world);
  if (shard.device_offset) {
    p.device_offset = dense<int64_t>(call, *shard.device_offset, "device_offset", at::kLong,
                                     values.device(), {1});
  }
  return call;
}

void check_slots(CheckedLists<PackParams>& call, const at::Tensor& counts, int64_t list) {
  PackParams& p = call.params;
  TORCH_CHECK_VALUE(counts.dim() == 2, "counts: got shape ", counts.sizes(), ", need [ranks, ",
                    p.rows, "]");
  check_ranks(counts.size(0), counts, "counts");
  check_list(list, counts.size(0), "list");
  p.counts = dense<int64_t>(call, counts, "counts", at::kLong, call.owners.front().device(),
                            {counts.size(0), p.rows});
  p.own = static_cast<int32_t>(list);
}

CheckedLists<MergeParams> check_gathered(const at::Tensor& gathered, at::DeviceType backend) {
  CheckedLists<MergeParams> call;
  MergeParams& p = call.params;
  check_message(gathered, "gathered", "[ranks, rows, 2, k]", 4, backend);
  check_ranks(gathered.size(0), gathered, "gathered");
  p.lists =
      dense<int32_t>(call, gathered, "gathered", at::kInt, gathered.device(), gathered.sizes());
  p.world = static_cast<int32_t>(gathered.size(0));
  p.rows = gathered.size(1);
  p.k = static_cast<int32_t>(gathered.size(3));
  p.list_stride = p.rows * 2 * p.k;
  return call;
}

CheckedLists<MergeParams> check_packed(const at::Tensor& packed, const at::Tensor& counts,
                                       at::DeviceType backend) {
  CheckedLists<MergeParams> call;
  MergeParams& p = call.params;
  check_message(packed, "packed", "[rows, 2, k]", 3, backend);
  p.lists = dense<int32_t>(call, packed, "packed", at::kInt, packed.device(), packed.sizes());
  p.rows = packed.size(0);
  p.k = static_cast<int32_t>(packed.size(2));
  TORCH_CHECK_VALUE(counts.dim() == 2, "counts: got shape ", counts.sizes(), ", need [ranks, ",
                    p.rows, "]");
  check_ranks(counts.size(0), counts, "counts");
  p.counts =
      dense<int64_t>(call, counts, "counts", at::kLong, packed.device(), {counts.size(0), p.rows});
  p.world = static_cast<int32_t>(counts.size(0));
  return call;
}

void check_own(CheckedLists<MergeParams>& call, const at::Tensor& values, const at::Tensor& indices,
               int64_t rank) {
  MergeParams& p = call.params;
  const at::Device device = call.owners.front().device();
  p.dtype = check_score_type(values.scalar_type(), "values");
  p.own_values = dense<void>(call, values, "values", values.scalar_type(), device, {p.rows, p.k});
  p.own_indices = dense<int32_t>(call, indices, "indices", at::kInt, device, {p.rows, p.k});
  check_list(rank, p.world, "rank");
  p.own = static_cast<int32_t>(rank);
}

CheckedLists<KeepParams> check_keep(const at::Tensor& values, const at::Tensor& indices,
                                    const at::Tensor& counts, at::DeviceType backend) {
  CheckedLists<KeepParams> call;
  check_lists(call, values, indices, backend);
  KeepParams& p = call.params;
  p.counts = dense<int64_t>(call, counts, "counts", at::kLong, values.device(), {p.rows});
  return call;
}

CheckedLists<DigitParams> check_digits(const at::Tensor& keys, const OptionalTensor& bound,
                                       const OptionalTensor& before, int64_t last_shift,
                                       int64_t shift, int64_t bits, at::DeviceType backend) {
  CheckedLists<DigitParams> call;
  DigitParams& p = call.params;
  check_backend(keys, "keys", backend);
  TORCH_CHECK_VALUE(keys.dim() == 2 && keys.size(1) >= 1 && keys.size(1) <= kInt32Max,
                    "keys: got shape ", keys.sizes(), ", need [rows, k] with 1 <= k < 2^31");
  p.keys = dense<int64_t>(call, keys, "keys", at::kLong, keys.device(), keys.sizes());
  p.rows = keys.size(0);
  p.k = static_cast<int32_t>(keys.size(1));
  p.last_shift = check_bits(last_shift, 63, "last_shift");
  p.shift = check_bits(shift, 62, "shift");
  p.edges = (1 << check_bits(bits, 16, "bits")) - 1;
  TORCH_CHECK_VALUE(bound.has_value() == before.has_value(), "before: got ",
                    before ? "a tensor without bound" : "None beside bound", ", need both or none");
  if (!bound) return call;
  p.last_bound = dense<int64_t>(call, *bound, "bound", at::kLong, keys.device(), {p.rows});
  TORCH_CHECK_VALUE(before->dim() == 2 && before->size(1) <= kInt32Max, "before: got shape ",
                    before->sizes(), ", need [", p.rows, ", edges]");
  p.before =
      dense<int32_t>(call, *before, "before", at::kInt, keys.device(), {p.rows, before->size(1)});
  p.last_edges = static_cast<int32_t>(before->size(1));
  return call;
}

}  // namespace gvr
