// SPDX-License-Identifier: Apache-2.0
#include "winners.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>

#include <tuple>

#include "check_winners.h"

namespace gvr {
namespace {

using at::Tensor;

WinnersBackend g_cpu, g_cuda;

constexpr const char* kUseDetached = "values.detach()";

// at::empty_like keeps the strides of views.
Tensor new_like(const Tensor& tensor) {
  return at::empty_like(tensor, {}, at::MemoryFormat::Contiguous);
}

template <at::DeviceType kBackend>
struct WinnerOps {
  static const WinnersBackend& backend() { return kBackend == at::kCPU ? g_cpu : g_cuda; }

  static Tensor pack(CheckedLists<PackParams>& call, const Tensor& indices) {
    const c10::DeviceGuard guard(indices.device());
    PackParams& p = call.params;
    Tensor message = at::empty({p.rows, 2, int64_t{p.k}}, indices.options());
    p.message = message.mutable_data_ptr<int32_t>();
    if (p.rows > 0) backend().pack(p);
    return message;
  }

  static Tensor pack_winners(const Tensor& values, const Tensor& indices, int64_t offset,
                             const OptionalTensor& device_offset, int64_t page, int64_t rank,
                             int64_t world) {
    auto call = check_pack(values, indices, {offset, device_offset, page, rank, world}, kBackend);
    return pack(call, indices);
  }

  static Tensor winner_keys(const Tensor& values, const Tensor& indices, int64_t offset,
                            const OptionalTensor& device_offset, int64_t page, int64_t rank,
                            int64_t world) {
    auto call = check_pack(values, indices, {offset, device_offset, page, rank, world}, kBackend);
    const c10::DeviceGuard guard(indices.device());
    PackParams& p = call.params;
    Tensor keys = at::empty({p.rows, int64_t{p.k}}, indices.options().dtype(at::kLong));
    p.keys = keys.mutable_data_ptr<int64_t>();
    if (p.rows > 0) backend().pack(p);
    return keys;
  }

  static std::tuple<Tensor, Tensor> count_digits(const Tensor& keys, const OptionalTensor& bound,
                                                 const OptionalTensor& before, int64_t last_shift,
                                                 int64_t shift, int64_t bits) {
    auto call = check_digits(keys, bound, before, last_shift, shift, bits, kBackend);
    const c10::DeviceGuard guard(keys.device());
    DigitParams& p = call.params;
    Tensor settled = at::empty({p.rows}, keys.options());
    Tensor counts = at::empty({p.rows, int64_t{p.edges}}, keys.options().dtype(at::kInt));
    p.bound = settled.mutable_data_ptr<int64_t>();
    p.counts = counts.mutable_data_ptr<int32_t>();
    if (p.rows > 0) backend().digits(p);
    return {settled, counts};
  }

  static Tensor place_winners(const Tensor& values, const Tensor& indices, const Tensor& counts,
                              int64_t list, int64_t offset, const OptionalTensor& device_offset,
                              int64_t page, int64_t rank, int64_t world) {
    auto call = check_pack(values, indices, {offset, device_offset, page, rank, world}, kBackend);
    check_slots(call, counts, list);
    return pack(call, indices);
  }

  static std::tuple<Tensor, Tensor> merge(CheckedLists<MergeParams>& call, const Tensor& lists,
                                          at::ScalarType dtype) {
    const c10::DeviceGuard guard(lists.device());
    MergeParams& p = call.params;
    p.dtype = check_score_type(dtype, "dtype");
    Tensor values = at::empty({p.rows, int64_t{p.k}}, lists.options().dtype(dtype));
    Tensor indices = at::empty({p.rows, int64_t{p.k}}, lists.options());
    p.values = values.mutable_data_ptr();
    p.indices = indices.mutable_data_ptr<int32_t>();
    if (p.rows > 0) backend().merge(p);
    return {values, indices};
  }

  static std::tuple<Tensor, Tensor> merge_winners(const Tensor& gathered, at::ScalarType dtype) {
    auto call = check_gathered(gathered, kBackend);
    return merge(call, gathered, dtype);
  }

  static std::tuple<Tensor, Tensor> order_winners(const Tensor& packed, const Tensor& counts,
                                                  at::ScalarType dtype) {
    auto call = check_packed(packed, counts, kBackend);
    return merge(call, packed, dtype);
  }

  static std::tuple<Tensor, Tensor> own_winners(const Tensor& gathered, const Tensor& values,
                                                const Tensor& indices, int64_t rank) {
    check_no_gradient(values, "own_winners", kUseDetached, "values");
    auto call = check_gathered(gathered, kBackend);
    check_own(call, values, indices, rank);
    return merge(call, gathered, values.scalar_type());
  }

  static std::tuple<Tensor, Tensor> keep_winners(const Tensor& values, const Tensor& indices,
                                                 const Tensor& counts) {
    check_no_gradient(values, "keep_winners", kUseDetached, "values");
    auto call = check_keep(values, indices, counts, kBackend);
    const c10::DeviceGuard guard(values.device());
    KeepParams& p = call.params;
    Tensor kept_values = new_like(values), kept_indices = new_like(indices);
    p.kept_values = kept_values.mutable_data_ptr();
    p.kept_indices = kept_indices.mutable_data_ptr<int32_t>();
    if (p.rows > 0) backend().keep(p);
    return {kept_values, kept_indices};
  }

  static void register_all(torch::Library& m) {
    m.impl("pack_winners", &pack_winners);
    m.impl("place_winners", &place_winners);
    m.impl("merge_winners", &merge_winners);
    m.impl("order_winners", &order_winners);
    m.impl("own_winners", &own_winners);
    m.impl("keep_winners", &keep_winners);
    m.impl("winner_keys", &winner_keys);
    m.impl("count_digits", &count_digits);
  }
};

}  // namespace

void register_winners(torch::Library& library, at::DeviceType backend,
                      const WinnersBackend& functions) {
  if (backend == at::kCPU) {
    g_cpu = functions;
    WinnerOps<at::kCPU>::register_all(library);
  } else {
    g_cuda = functions;
    WinnerOps<at::kCUDA>::register_all(library);
  }
}

}  // namespace gvr
