// SPDX-License-Identifier: Apache-2.0
// Gradient of gvr::topk: the values are scores[indices], so their gradient goes back to the
// selected positions. Indices have no gradient; padding (-1) passes none on.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

namespace gvr {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using TopKOp = std::tuple<Tensor, Tensor>(const Tensor&, int64_t, const OptionalTensor&,
                                          const OptionalTensor&, const OptionalTensor&, int64_t,
                                          int64_t, int64_t, bool, c10::string_view);

std::tuple<Tensor, Tensor> topk_below_autograd(const Tensor& scores, int64_t k,
                                               const OptionalTensor& hint,
                                               const OptionalTensor& lengths,
                                               const OptionalTensor& starts, int64_t next_n,
                                               int64_t compress_ratio, int64_t hint_offset,
                                               bool sorted, c10::string_view algorithm) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gvr::topk", "").typed<TopKOp>();
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(scores, k, hint, lengths, starts, next_n, compress_ratio, hint_offset, sorted,
                 algorithm);
}

struct TopKFunction : torch::autograd::Function<TopKFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& scores, int64_t k,
                               const OptionalTensor& hint, const OptionalTensor& lengths,
                               const OptionalTensor& starts, int64_t next_n, int64_t compress_ratio,
                               int64_t hint_offset, bool sorted, c10::string_view algorithm) {
    auto [values, indices] = topk_below_autograd(scores, k, hint, lengths, starts, next_n,
                                                 compress_ratio, hint_offset, sorted, algorithm);
    ctx->mark_non_differentiable({indices});
    ctx->save_for_backward({indices});
    ctx->saved_data["n"] = scores.sym_size(-1);
    return {values, indices};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor indices = ctx->get_saved_variables()[0];
    const Tensor& gradient = gradients[0];
    c10::SymDimVector shape(indices.sym_sizes().begin(), indices.sym_sizes().end());
    shape.back() = ctx->saved_data["n"].toSymInt();
    const c10::SymInt n = shape.back();
    shape.back() = n.max(1);  // padding needs a position 0
    // Distinct positions, so that adding loses nothing; padding adds 0 to position 0.
    const Tensor selected = at::where(indices.ge(0), gradient, 0);
    variable_list result(10);
    result[0] = at::zeros_symint(shape, gradient.options())
                    .scatter_add(-1, indices.clamp_min(0).to(at::kLong), selected)
                    .narrow_symint(-1, 0, n);
    return result;
  }
};

std::tuple<Tensor, Tensor> topk_autograd(const Tensor& scores, int64_t k,
                                         const OptionalTensor& hint, const OptionalTensor& lengths,
                                         const OptionalTensor& starts, int64_t next_n,
                                         int64_t compress_ratio, int64_t hint_offset, bool sorted,
                                         c10::string_view algorithm) {
  if (!scores.requires_grad() || !c10::GradMode::is_enabled()) {
    return topk_below_autograd(scores, k, hint, lengths, starts, next_n, compress_ratio,
                               hint_offset, sorted, algorithm);
  }
  const variable_list result = TopKFunction::apply(scores, k, hint, lengths, starts, next_n,
                                                   compress_ratio, hint_offset, sorted, algorithm);
  return {result[0], result[1]};
}

}  // namespace
}  // namespace gvr

TORCH_LIBRARY_IMPL(gvr, Autograd, m) { m.impl("topk", &gvr::topk_autograd); }
