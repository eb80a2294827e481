// SPDX-License-Identifier: Apache-2.0
#include "topk.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>
#include <c10/core/DeviceGuard.h>

#include <initializer_list>
#include <limits>
#include <tuple>

#include "../common/plan.h"
#include "check.h"

namespace gvr {
namespace {

using at::Tensor;

Launch g_launch_cpu = nullptr;
Launch g_launch_cuda = nullptr;

template <at::DeviceType kBackend>
Launch backend_launch() {
  return kBackend == at::kCPU ? g_launch_cpu : g_launch_cuda;
}

// Order rows of more winners than the sort kernel holds: index ascending, then a stable sort by
// score. Padding (-1) goes to the end, where it came from.
void sort_with_aten(const Outputs& outputs) {
  const Tensor &values = outputs.values, &indices = outputs.indices;
  const int32_t last = std::numeric_limits<int32_t>::max();
  const Tensor by_index = at::where(indices.lt(0), last, indices);
  auto [index, order] = at::sort(by_index, /*stable=*/true, /*dim=*/-1, /*descending=*/false);
  const Tensor score = values.gather(-1, order);
  // +0.0 makes the two zeros one value.
  const Tensor rank =
      std::get<1>(at::sort(score.add(0), /*stable=*/true, /*dim=*/-1, /*descending=*/true));
  index = index.gather(-1, rank);
  indices.copy_(at::where(index.eq(last), -1, index));
  values.copy_(score.gather(-1, rank));
  if (outputs.kv_indices.defined()) {
    outputs.kv_indices.copy_(outputs.kv_indices.gather(-1, order.gather(-1, rank)));
  }
}

void run(CheckedCall& call, const Tensor& scores, Outputs outputs, Launch launch) {
  const c10::DeviceGuard guard(scores.device());
  const bool aten_sort = scores.is_cuda() && call.params.sorted && call.params.k > kMaxFusedSort;
  if (aten_sort) {
    call.params.sorted = false;
    if (!outputs.values.defined()) {
      outputs.values = at::empty(call.output_shape, scores.options());
    }
  }
  attach_outputs(call, outputs);
  if (call.params.rows > 0) launch(call.params);
  if (aten_sort) sort_with_aten(outputs);
}

// Tells autograd that a tensor of the caller's was written, as torch's own operators do.
void mark_written(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

Tensor new_indices(const CheckedCall& call, const Tensor& scores) {
  return at::empty(call.output_shape, scores.options().dtype(at::kInt));
}

Tensor new_values(const CheckedCall& call, const Tensor& scores) {
  return at::empty(call.output_shape, scores.options());
}

Tensor new_stats(const CheckedCall& call, const Tensor& scores) {
  return at::empty({call.params.rows, int64_t{kStatColumns}}, scores.options().dtype(at::kInt));
}

constexpr const char* kUseTopk = "gvr::topk for differentiable values, or scores.detach()";

#define GVR_WINDOW_PARAMETERS \
  const OptionalTensor &lengths, const OptionalTensor &starts, int64_t next_n, \
      int64_t compress_ratio, int64_t hint_offset, bool sorted, c10::string_view algorithm
#define GVR_ARGUMENTS \
  TopKArguments { \
    scores, k, lengths, starts, next_n, compress_ratio, hint_offset, sorted, \
        std::string_view(algorithm.data(), algorithm.size()) \
  }
#define GVR_REQUEST_PARAMETERS const OptionalTensor &row_to_request, bool windows_per_row
#define GVR_MAPPED_ARGUMENTS \
  TopKArguments { \
    scores, k, lengths, starts, next_n, compress_ratio, hint_offset, sorted, \
        std::string_view(algorithm.data(), algorithm.size()), &row_to_request, windows_per_row \
  }
#define GVR_PLACEMENT_PARAMETERS \
  const OptionalTensor &page_table, int64_t page_size, const OptionalTensor &offsets

template <at::DeviceType kBackend>
struct Ops {
  static CheckedCall check(const TopKArguments& arguments, const OptionalTensor& hint) {
    CheckedCall call = check_arguments(arguments, kBackend);
    check_hint(call, arguments.scores, hint);
    return call;
  }

  static CheckedCall check_step(const TopKArguments& arguments, const Tensor& state, int64_t layer,
                                const OptionalTensor& slots) {
    CheckedCall call = check_arguments(arguments, kBackend);
    check_state(call, arguments.scores, state, layer, slots);
    return call;
  }

  static std::tuple<Tensor, Tensor> topk(const Tensor& scores, int64_t k,
                                         const OptionalTensor& hint, GVR_WINDOW_PARAMETERS) {
    CheckedCall call = check(GVR_ARGUMENTS, hint);
    Tensor values = new_values(call, scores), indices = new_indices(call, scores);
    run(call, scores, {.indices = indices, .values = values}, backend_launch<kBackend>());
    return {values, indices};
  }

  static void topk_out(const Tensor& scores, int64_t k, const OptionalTensor& hint,
                       GVR_WINDOW_PARAMETERS, const Tensor& values, const Tensor& indices) {
    check_no_gradient(scores, "topk.out", kUseTopk);
    CheckedCall call = check(GVR_ARGUMENTS, hint);
    check_output(call, scores, values, "values", scores.scalar_type());
    check_output(call, scores, indices, "indices", at::kInt);
    run(call, scores, {.indices = indices, .values = values}, backend_launch<kBackend>());
    mark_written({values, indices});
  }

  static Tensor topk_indices(const Tensor& scores, int64_t k, const OptionalTensor& hint,
                             GVR_WINDOW_PARAMETERS) {
    CheckedCall call = check(GVR_ARGUMENTS, hint);
    Tensor indices = new_indices(call, scores);
    run(call, scores, {.indices = indices}, backend_launch<kBackend>());
    return indices;
  }

  static void topk_indices_out(const Tensor& scores, int64_t k, const OptionalTensor& hint,
                               GVR_WINDOW_PARAMETERS, const Tensor& indices) {
    CheckedCall call = check(GVR_ARGUMENTS, hint);
    check_output(call, scores, indices, "indices", at::kInt);
    run(call, scores, {.indices = indices}, backend_launch<kBackend>());
    mark_written({indices});
  }

  static std::tuple<Tensor, Tensor, Tensor> topk_stats(const Tensor& scores, int64_t k,
                                                       const OptionalTensor& hint,
                                                       GVR_WINDOW_PARAMETERS) {
    check_no_gradient(scores, "topk_stats", kUseTopk);
    CheckedCall call = check(GVR_ARGUMENTS, hint);
    Tensor values = new_values(call, scores), indices = new_indices(call, scores);
    Tensor stats = new_stats(call, scores);
    run(call, scores, {.indices = indices, .values = values, .stats = stats},
        backend_launch<kBackend>());
    return {values, indices, stats};
  }

  static Tensor step(const Tensor& scores, const Tensor& state, int64_t layer, int64_t k,
                     const OptionalTensor& slots, GVR_WINDOW_PARAMETERS) {
    CheckedCall call = check_step(GVR_ARGUMENTS, state, layer, slots);
    Tensor indices = new_indices(call, scores);
    run(call, scores, {.indices = indices}, backend_launch<kBackend>());
    mark_written({state});
    return indices;
  }

  static std::tuple<Tensor, Tensor> step_values(const Tensor& scores, const Tensor& state,
                                                int64_t layer, int64_t k,
                                                const OptionalTensor& slots,
                                                GVR_WINDOW_PARAMETERS) {
    check_no_gradient(scores, "step_values", kUseTopk);
    CheckedCall call = check_step(GVR_ARGUMENTS, state, layer, slots);
    Tensor values = new_values(call, scores), indices = new_indices(call, scores);
    run(call, scores, {.indices = indices, .values = values}, backend_launch<kBackend>());
    mark_written({state});
    return {values, indices};
  }

  static std::tuple<Tensor, Tensor, Tensor> step_stats(const Tensor& scores, const Tensor& state,
                                                       int64_t layer, int64_t k,
                                                       const OptionalTensor& slots,
                                                       GVR_WINDOW_PARAMETERS) {
    check_no_gradient(scores, "step_stats", kUseTopk);
    CheckedCall call = check_step(GVR_ARGUMENTS, state, layer, slots);
    Tensor values = new_values(call, scores), indices = new_indices(call, scores);
    Tensor stats = new_stats(call, scores);
    run(call, scores, {.indices = indices, .values = values, .stats = stats},
        backend_launch<kBackend>());
    mark_written({state});
    return {values, indices, stats};
  }

  static CheckedCall check_kv(const TopKArguments& arguments, const OptionalTensor& hint,
                              const PlacementArguments& placement) {
    CheckedCall call = check(arguments, hint);
    check_placement(call, arguments.scores, placement);
    check_map_is_used(call);
    return call;
  }

  static std::tuple<Tensor, Tensor> topk_kv(const Tensor& scores, int64_t k,
                                            const OptionalTensor& hint, GVR_PLACEMENT_PARAMETERS,
                                            GVR_REQUEST_PARAMETERS, GVR_WINDOW_PARAMETERS) {
    CheckedCall call = check_kv(GVR_MAPPED_ARGUMENTS, hint, {page_table, page_size, offsets});
    Tensor kv_indices = new_indices(call, scores), indices = new_indices(call, scores);
    run(call, scores, {.indices = indices, .kv_indices = kv_indices}, backend_launch<kBackend>());
    return {kv_indices, indices};
  }

  static void topk_kv_out(const Tensor& scores, int64_t k, const OptionalTensor& hint,
                          GVR_PLACEMENT_PARAMETERS, GVR_REQUEST_PARAMETERS, GVR_WINDOW_PARAMETERS,
                          const Tensor& kv_indices, const Tensor& indices) {
    CheckedCall call = check_kv(GVR_MAPPED_ARGUMENTS, hint, {page_table, page_size, offsets});
    check_output(call, scores, kv_indices, "kv_indices", at::kInt);
    check_output(call, scores, indices, "indices", at::kInt);
    run(call, scores, {.indices = indices, .kv_indices = kv_indices}, backend_launch<kBackend>());
    mark_written({kv_indices, indices});
  }

  static std::tuple<Tensor, Tensor> step_kv(const Tensor& scores, const Tensor& state,
                                            int64_t layer, int64_t k, const OptionalTensor& slots,
                                            GVR_PLACEMENT_PARAMETERS, GVR_REQUEST_PARAMETERS,
                                            GVR_WINDOW_PARAMETERS) {
    CheckedCall call = check_arguments(GVR_MAPPED_ARGUMENTS, kBackend);
    // First what only has a shape: where it fixes the number of requests, slots=None follows it.
    check_placement(call, scores, {page_table, page_size, offsets});
    check_state(call, scores, state, layer, slots);
    Tensor kv_indices = new_indices(call, scores), indices = new_indices(call, scores);
    run(call, scores, {.indices = indices, .kv_indices = kv_indices}, backend_launch<kBackend>());
    mark_written({state});
    return {kv_indices, indices};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> step_difference(
      const Tensor& scores, const Tensor& state, int64_t layer, int64_t k,
      const OptionalTensor& slots, GVR_REQUEST_PARAMETERS, GVR_WINDOW_PARAMETERS) {
    CheckedCall call = check_arguments(GVR_MAPPED_ARGUMENTS, kBackend);
    check_state(call, scores, state, layer, slots);
    check_difference(call);
    Tensor indices = new_indices(call, scores);
    Tensor entered = new_indices(call, scores), left = new_indices(call, scores);
    Tensor counts = at::empty({call.params.rows, 2}, indices.options());
    run(call, scores, {.indices = indices, .entered = entered, .left = left, .counts = counts},
        backend_launch<kBackend>());
    mark_written({state});
    return {indices, entered, left, counts};
  }

  static void register_all(torch::Library& m) {
    m.impl("topk", &topk);
    m.impl("topk.out", &topk_out);
    m.impl("topk_indices", &topk_indices);
    m.impl("topk_indices.out", &topk_indices_out);
    m.impl("topk_stats", &topk_stats);
    m.impl("step", &step);
    m.impl("step_values", &step_values);
    m.impl("step_stats", &step_stats);
    m.impl("topk_kv", &topk_kv);
    m.impl("topk_kv.out", &topk_kv_out);
    m.impl("step_kv", &step_kv);
    m.impl("step_difference", &step_difference);
  }
};

#undef GVR_WINDOW_PARAMETERS
#undef GVR_ARGUMENTS
#undef GVR_REQUEST_PARAMETERS
#undef GVR_MAPPED_ARGUMENTS
#undef GVR_PLACEMENT_PARAMETERS

}  // namespace

void register_backend(torch::Library& library, at::DeviceType backend, Launch launch) {
  if (backend == at::kCPU) {
    g_launch_cpu = launch;
    Ops<at::kCPU>::register_all(library);
  } else {
    g_launch_cuda = launch;
    Ops<at::kCUDA>::register_all(library);
  }
}

}  // namespace gvr
