// SPDX-License-Identifier: Apache-2.0
#include "topk_cache.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <limits>

#include "../common/params.h"

namespace gvr {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

// The operators gvr::step*, which differ in what they return only.
template <typename Result>
using StepOp = Result(const Tensor&, const Tensor&, int64_t, int64_t, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&, int64_t, int64_t, int64_t, bool,
                      c10::string_view);

template <typename Result>
c10::TypedOperatorHandle<StepOp<Result>> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<StepOp<Result>>();
}

template <typename Result>
Result call_op(const c10::TypedOperatorHandle<StepOp<Result>>& op, const TopKCache& cache,
               const Tensor& scores, int64_t layer, const OptionalTensor& slots,
               const OptionalTensor& lengths, const TopKCache::StepOptions& options) {
  return op.call(scores, cache.state(), layer, cache.k(), slots, lengths, options.starts,
                 options.next_n, options.compress_ratio, options.hint_offset, options.sorted,
                 options.algorithm);
}

void check_slot_list(const Tensor& slots, const char* name) {
  TORCH_CHECK_TYPE(slots.scalar_type() == at::kInt || slots.scalar_type() == at::kLong, name,
                   ": got dtype ", slots.scalar_type(), ", need torch.int32 or torch.int64");
  TORCH_CHECK_VALUE(slots.dim() == 1, name, ": got shape ", slots.sizes(),
                    ", need a 1-dimensional tensor");
}

// Where the values can be seen without stopping a stream they must be in [0, limit).
void check_range(const Tensor& values, int64_t limit, const char* name) {
  if (!values.device().is_cpu()) return;
  const Tensor wide = values.to(at::kLong).contiguous();
  const int64_t* data = wide.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < wide.numel(); ++i) {
    TORCH_CHECK_INDEX(data[i] >= 0 && data[i] < limit, name, ": got ", data[i], " at position ", i,
                      ", need 0 <= ", name, " < ", limit);
  }
}

}  // namespace

TopKCache::TopKCache(int64_t layers, int64_t slots, int64_t k, std::optional<int64_t> hint_size,
                     int64_t depth, at::Device device)
    : k_(k) {
  TORCH_CHECK_VALUE(layers >= 1 && layers <= kInt32Max, "layers: got ", layers,
                    ", need at least 1 (and below 2^31)");
  TORCH_CHECK_VALUE(slots >= 1 && slots <= kInt32Max, "slots: got ", slots,
                    ", need at least 1 (and below 2^31)");
  TORCH_CHECK_VALUE(k >= 1 && k <= kInt32Max, "k: got ", k, ", need 1 <= k < 2^31");
  const int64_t hints = hint_size.value_or(k);
  TORCH_CHECK_VALUE(hints >= 1 && hints <= k, "hint_size: got ", hints,
                    ", need 1 <= hint_size <= k (", k, ")");
  TORCH_CHECK_VALUE(depth >= 1 && depth <= kInt32Max, "depth: got ", depth,
                    ", need at least 1 (and below 2^31)");
  const int64_t words = int64_t{kStateHeader} + hints;
  int64_t bytes = 0;
  const bool overflow = words > kInt32Max ||
                        __builtin_mul_overflow(layers * slots + 1, depth, &bytes) ||
                        __builtin_mul_overflow(bytes, words * int64_t{sizeof(int32_t)}, &bytes);
  TORCH_CHECK_VALUE(!overflow, "layers, slots, depth, hint_size: got ", layers, ", ", slots, ", ",
                    depth, ", ", hints, ", need a state of fewer than 2^63 bytes");
  entries_ = at::zeros({layers * slots + 1, depth, words}, at::device(device).dtype(at::kInt));
  state_ = entries_.narrow(0, 0, layers * slots).view({layers, slots, depth, words});
}

Tensor TopKCache::step(const Tensor& scores, int64_t layer, const OptionalTensor& slots,
                       const OptionalTensor& lengths, const StepOptions& options) const {
  static const auto op = find_op<Tensor>("gvr::step");
  return call_op(op, *this, scores, layer, slots, lengths, options);
}

std::tuple<Tensor, Tensor> TopKCache::step_values(const Tensor& scores, int64_t layer,
                                                  const OptionalTensor& slots,
                                                  const OptionalTensor& lengths,
                                                  const StepOptions& options) const {
  static const auto op = find_op<std::tuple<Tensor, Tensor>>("gvr::step_values");
  return call_op(op, *this, scores, layer, slots, lengths, options);
}

std::tuple<Tensor, Tensor, Tensor> TopKCache::step_stats(const Tensor& scores, int64_t layer,
                                                         const OptionalTensor& slots,
                                                         const OptionalTensor& lengths,
                                                         const StepOptions& options) const {
  static const auto op = find_op<std::tuple<Tensor, Tensor, Tensor>>("gvr::step_stats");
  return call_op(op, *this, scores, layer, slots, lengths, options);
}

void TopKCache::reset(const OptionalTensor& slots) {
  // A hint count of 0 is what "no hint" means; the indices behind the header need no clearing.
  const Tensor headers = entries_.narrow(2, 0, kStateHeader);
  if (slots) {
    headers.index_fill_(0, entries_of(*slots, "slots"), 0);
  } else {
    headers.zero_();
  }
}

void TopKCache::copy(const Tensor& src, const Tensor& dst) {
  check_slot_list(src, "src");
  check_slot_list(dst, "dst");
  TORCH_CHECK_VALUE(src.numel() == dst.numel(), "dst: got ", dst.numel(), " slots, need ",
                    src.numel(), " (as many as src)");
  const Tensor from = entries_of(src, "src");
  const Tensor to = entries_of(dst, "dst");
  // An unknown source must not reach a slot: its pair is spent on the spare entry.
  const int64_t spare = entries_.size(0) - 1;
  entries_.index_copy_(0, at::where(from.eq(spare), from, to), entries_.index_select(0, from));
}

void TopKCache::commit(const Tensor& slots, const Tensor& accepted) {
  check_slot_list(slots, "slots");
  check_slot_list(accepted, "accepted");
  TORCH_CHECK_VALUE(accepted.numel() == slots.numel(), "accepted: got ", accepted.numel(),
                    " values, need ", slots.numel(), " (one per slot)");
  check_range(accepted, depth(), "accepted");
  const Tensor entries = entries_of(slots, "slots");
  const Tensor words = accepted.to(device(), at::kInt).repeat({layers()});
  entries_.select(1, 0).select(1, kStateAccepted).index_copy_(0, entries, words);
}

int64_t TopKCache::hint_size() const { return state_.size(3) - int64_t{kStateHeader}; }

int64_t TopKCache::nbytes() const { return static_cast<int64_t>(entries_.nbytes()); }

Tensor TopKCache::entries_of(const Tensor& slots, const char* name) const {
  check_slot_list(slots, name);
  const Tensor local = device().is_cpu() ? slots.to(at::kCPU) : slots;
  check_range(local, this->slots(), name);
  const Tensor slot = local.to(device(), at::kLong);
  const Tensor first = at::arange(layers(), slot.options()).mul_(this->slots()).unsqueeze(1);
  const Tensor entry = first.add(slot);
  if (local.device().is_cpu()) return entry.view(-1);  // checked above
  const Tensor known = slot.ge(0).logical_and_(slot.lt(this->slots()));
  return at::where(known, entry, layers() * this->slots()).view(-1);
}

}  // namespace gvr
