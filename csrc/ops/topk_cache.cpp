// SPDX-License-Identifier: Apache-2.0
#include "topk_cache.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/params.h"
#include "../common/rows.h"

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

using StepKvOp = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, int64_t, int64_t,
                                            const OptionalTensor&, const OptionalTensor&, int64_t,
                                            const OptionalTensor&, const OptionalTensor&, bool,
                                            const OptionalTensor&, const OptionalTensor&, int64_t,
                                            int64_t, int64_t, bool, c10::string_view);
using StepDifferenceOp = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, int64_t, int64_t, const OptionalTensor&, const OptionalTensor&,
    bool, const OptionalTensor&, const OptionalTensor&, int64_t, int64_t, int64_t, bool,
    c10::string_view);

template <typename Op>
c10::TypedOperatorHandle<Op> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Op>();
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

// Where the values can be seen, likewise, none may come twice.
void check_distinct(const Tensor& values, const char* name) {
  if (!values.device().is_cpu()) return;
  const Tensor wide = values.to(at::kLong).contiguous();
  std::vector<int64_t> sorted(wide.const_data_ptr<int64_t>(),
                              wide.const_data_ptr<int64_t>() + wide.numel());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  TORCH_CHECK_VALUE(twice == sorted.end(), name, ": got slot ", twice == sorted.end() ? 0 : *twice,
                    " twice, need distinct slots");
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
  static const auto op = find_op<StepOp<Tensor>>("gvr::step");
  check_device(scores);
  return call_op(op, *this, scores, layer, slots, lengths, options);
}

std::tuple<Tensor, Tensor> TopKCache::step_values(const Tensor& scores, int64_t layer,
                                                  const OptionalTensor& slots,
                                                  const OptionalTensor& lengths,
                                                  const StepOptions& options) const {
  static const auto op = find_op<StepOp<std::tuple<Tensor, Tensor>>>("gvr::step_values");
  check_device(scores);
  return call_op(op, *this, scores, layer, slots, lengths, options);
}

std::tuple<Tensor, Tensor, Tensor> TopKCache::step_stats(const Tensor& scores, int64_t layer,
                                                         const OptionalTensor& slots,
                                                         const OptionalTensor& lengths,
                                                         const StepOptions& options) const {
  static const auto op = find_op<StepOp<std::tuple<Tensor, Tensor, Tensor>>>("gvr::step_stats");
  check_device(scores);
  return call_op(op, *this, scores, layer, slots, lengths, options);
}

std::tuple<Tensor, Tensor> TopKCache::step_kv(const Tensor& scores, int64_t layer,
                                              const OptionalTensor& slots,
                                              const OptionalTensor& lengths, const KvOptions& kv,
                                              const StepOptions& options) const {
  static const auto op = find_op<StepKvOp>("gvr::step_kv");
  check_device(scores);
  return op.call(scores, state_, layer, k_, slots, kv.page_table, kv.page_size, kv.offsets,
                 kv.map.row_to_request, kv.map.windows_per_row, lengths, options.starts,
                 options.next_n, options.compress_ratio, options.hint_offset, options.sorted,
                 options.algorithm);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> TopKCache::step_difference(
    const Tensor& scores, int64_t layer, const OptionalTensor& slots, const OptionalTensor& lengths,
    const RequestMap& map, const StepOptions& options) const {
  static const auto op = find_op<StepDifferenceOp>("gvr::step_difference");
  check_device(scores);
  TORCH_CHECK_VALUE(hint_size() == k_, "hint_size: got a cache of ", hint_size(),
                    ", need one of k (", k_, "): a difference needs the whole previous answer");
  return op.call(scores, state_, layer, k_, slots, map.row_to_request, map.windows_per_row, lengths,
                 options.starts, options.next_n, options.compress_ratio, options.hint_offset,
                 options.sorted, options.algorithm);
}

void TopKCache::seed(int64_t layer, const Tensor& slots, const Tensor& indices) {
  TORCH_CHECK_INDEX(layer >= 0 && layer < layers(), "layer: got ", layer, ", need 0 <= layer < ",
                    layers());
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kInt, "indices: got dtype ", indices.scalar_type(),
                   ", need torch.int32");
  check_slot_list(slots, "slots");
  TORCH_CHECK_VALUE(indices.dim() == 2 && indices.size(0) == slots.numel() && indices.size(1) == k_,
                    "indices: got shape ", indices.sizes(), ", need [", slots.numel(), ", ", k_,
                    "] (slots, k)");
  // The positions that a step keeps, see hint_at.
  TopKParams p;
  p.state_hints = static_cast<int32_t>(hint_size());
  p.hint_step = make_hint_step(p.state_hints, static_cast<int32_t>(k_));
  std::vector<int64_t> kept;
  for (int64_t position = 0; position < k_; ++position) {
    if (hint_at(p, static_cast<uint32_t>(position)) >= 0) kept.push_back(position);
  }
  const Tensor entries = entries_of(slots, "slots", Repeats::kRefused).view({layers(), -1})[layer];
  const auto count = static_cast<int64_t>(kept.size());
  Tensor hints = indices.to(device());
  if (count < k_) hints = hints.index_select(1, at::tensor(kept, hints.options().dtype(at::kLong)));
  const Tensor header = at::zeros({slots.numel(), int64_t{kStateHeader}}, hints.options());
  header.select(1, kStateCount).fill_(count);
  header.select(1, kStateHits).fill_(-1);
  entries_.select(1, 0)
      .narrow(1, 0, kStateHeader + count)
      .index_copy_(0, entries, at::cat({header, hints}, 1));
}

void TopKCache::reset(const OptionalTensor& slots) {
  // A hint count of 0 is what "no hint" means; the indices behind the header need no clearing.
  const Tensor headers = entries_.narrow(2, 0, kStateHeader);
  if (slots) {
    headers.index_fill_(0, entries_of(*slots, "slots", Repeats::kAllowed), 0);
  } else {
    headers.zero_();
  }
}

void TopKCache::copy(const Tensor& src, const Tensor& dst) {
  check_slot_list(src, "src");
  check_slot_list(dst, "dst");
  TORCH_CHECK_VALUE(src.numel() == dst.numel(), "dst: got ", dst.numel(), " slots, need ",
                    src.numel(), " (as many as src)");
  const Tensor from = entries_of(src, "src", Repeats::kAllowed);
  const Tensor to = entries_of(dst, "dst", Repeats::kRefused);
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
  const Tensor entries = entries_of(slots, "slots", Repeats::kRefused);
  const Tensor words = accepted.to(device(), at::kInt).repeat({layers()});
  entries_.select(1, 0).select(1, kStateAccepted).index_copy_(0, entries, words);
}

void TopKCache::remap(const Tensor& slots, const Tensor& positions) {
  check_slot_list(slots, "slots");
  TORCH_CHECK_TYPE(positions.scalar_type() == at::kInt || positions.scalar_type() == at::kLong,
                   "positions: got dtype ", positions.scalar_type(),
                   ", need torch.int32 or torch.int64");
  const bool shared = positions.dim() == 1;
  TORCH_CHECK_VALUE(shared || (positions.dim() == 2 && positions.size(0) == slots.numel()),
                    "positions: got shape ", positions.sizes(), ", need [n] or [", slots.numel(),
                    ", n] (one row per slot)");
  const Tensor entries = entries_of(slots, "slots", Repeats::kRefused);
  // One more column, which every position beyond the map is sent to.
  const int64_t length = positions.size(-1);
  std::vector<int64_t> beyond(positions.sizes().begin(), positions.sizes().end());
  beyond.back() = 1;
  const Tensor given = positions.to(device(), at::kLong);
  const Tensor valid = at::where(given.lt(0).logical_or_(given.ge(kInt32Max)), -1, given);
  const Tensor flat = at::cat({valid, at::full(beyond, -1, valid.options())}, -1).reshape(-1);
  const Tensor table = entries_.narrow(2, kStateHeader, hint_size());
  // A bounded part of the entries at a time: 64-bit copies of all of them may not fit.
  constexpr int64_t kPart = int64_t{1} << 22;
  const int64_t step = std::max<int64_t>(1, kPart / (depth() * hint_size()));
  const Tensor map_row = shared ? at::zeros_like(entries)
                                : at::arange(slots.numel(), entries.options()).repeat({layers()});
  for (int64_t first = 0; first < entries.numel(); first += step) {
    const int64_t count = std::min(step, entries.numel() - first);
    const Tensor part = entries.narrow(0, first, count);
    const Tensor old = table.index_select(0, part).to(at::kLong);
    const Tensor column = at::where(old.lt(0).logical_or_(old.ge(length)), length, old);
    const Tensor cell =
        column.add_(map_row.narrow(0, first, count).mul(length + 1).view({-1, 1, 1}));
    table.index_copy_(0, part, flat.index_select(0, cell.view(-1)).view(cell.sizes()).to(at::kInt));
  }
}

Tensor TopKCache::export_entries(const Tensor& slots) const {
  const Tensor entries = entries_of(slots, "slots", Repeats::kAllowed);
  const Tensor result = entries_.index_select(0, entries);
  // What the spare entry holds is nobody's.
  const Tensor unknown = entries.eq(layers() * this->slots()).view({-1, 1, 1});
  result.narrow(2, 0, kStateHeader).masked_fill_(unknown, 0);
  result.narrow(2, kStateHeader, hint_size()).masked_fill_(unknown, -1);
  return result.view({layers(), slots.numel(), depth(), state_.size(3)});
}

void TopKCache::import_entries(const Tensor& slots, const Tensor& entries) {
  check_slot_list(slots, "slots");
  TORCH_CHECK_TYPE(entries.scalar_type() == at::kInt, "entries: got dtype ", entries.scalar_type(),
                   ", need torch.int32");
  const std::vector<int64_t> shape{layers(), slots.numel(), depth(), state_.size(3)};
  TORCH_CHECK_VALUE(entries.sizes() == shape, "entries: got shape ", entries.sizes(), ", need ",
                    at::IntArrayRef(shape), " (layers, slots, depth, ", int{kStateHeader},
                    " + hint_size), as export gives it from a cache of the same sizes");
  const Tensor to = entries_of(slots, "slots", Repeats::kRefused);
  const Tensor local = entries.is_alias_of(entries_) ? entries.clone() : entries.to(device());
  entries_.index_copy_(0, to, local.reshape({-1, depth(), state_.size(3)}));
}

int64_t TopKCache::hint_size() const { return state_.size(3) - int64_t{kStateHeader}; }

int64_t TopKCache::nbytes() const { return static_cast<int64_t>(entries_.nbytes()); }

void TopKCache::check_device(const Tensor& scores) const {
  TORCH_CHECK_VALUE(scores.device() == device(), "scores: got a tensor on ", scores.device(),
                    ", need the device of the cache (", device(), ")");
}

Tensor TopKCache::entries_of(const Tensor& slots, const char* name, Repeats repeats) const {
  check_slot_list(slots, name);
  const Tensor local = device().is_cpu() ? slots.to(at::kCPU) : slots;
  check_range(local, this->slots(), name);
  if (repeats == Repeats::kRefused) check_distinct(local, name);
  const Tensor slot = local.to(device(), at::kLong);
  const Tensor first = at::arange(layers(), slot.options()).mul_(this->slots()).unsqueeze(1);
  const Tensor entry = first.add(slot);
  if (local.device().is_cpu()) return entry.view(-1);  // checked above
  const Tensor known = slot.ge(0).logical_and_(slot.lt(this->slots()));
  return at::where(known, entry, layers() * this->slots()).view(-1);
}

}  // namespace gvr
