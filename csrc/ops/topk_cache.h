// SPDX-License-Identifier: Apache-2.0
// TopKCache: the previous answers of every layer and request slot of a decoder, in one tensor.
//
// It owns that tensor and says what may be done to it; the selection itself is the operator
// gvr::step, which takes the plain tensor. Slots name requests: a stable number that a server gives
// a request, never its position in the batch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

namespace gvr {

class TopKCache {
 public:
  // What a step may be told besides scores, layer, slots and lengths; gvr_topk/ops.py explains
  // each.
  struct StepOptions {
    std::optional<at::Tensor> starts;
    int64_t next_n = 1;
    int64_t compress_ratio = 1;
    int64_t hint_offset = 0;
    bool sorted = false;
    std::string algorithm = "auto";
  };

  // `hint_size` previous indices are kept per entry (k by default); `depth` entries per slot, one
  // per draft token of a speculative step.
  TopKCache(int64_t layers, int64_t slots, int64_t k,
            std::optional<int64_t> hint_size = std::nullopt, int64_t depth = 1,
            at::Device device = at::kCPU);

  // Select with the stored hint and store the new one, in one launch.
  at::Tensor step(const at::Tensor& scores, int64_t layer, const std::optional<at::Tensor>& slots,
                  const std::optional<at::Tensor>& lengths, const StepOptions& options) const;
  // (values, indices)
  std::tuple<at::Tensor, at::Tensor> step_values(const at::Tensor& scores, int64_t layer,
                                                 const std::optional<at::Tensor>& slots,
                                                 const std::optional<at::Tensor>& lengths,
                                                 const StepOptions& options) const;
  // (values, indices, stats)
  std::tuple<at::Tensor, at::Tensor, at::Tensor> step_stats(
      const at::Tensor& scores, int64_t layer, const std::optional<at::Tensor>& slots,
      const std::optional<at::Tensor>& lengths, const StepOptions& options) const;

  // The three below act on every layer. Slots are 1-D int32 or int64 tensors on any device. A slot
  // out of range is an IndexError when the tensor is on the CPU. On CUDA, where looking would stop
  // the stream, it is ignored: nothing of the cache is read or written for it.

  // Forget the hints of these slots (of all: no argument).
  void reset(const std::optional<at::Tensor>& slots = std::nullopt);
  // dst[i] takes over the entries of src[i]. Every src is read before the first dst is written.
  void copy(const at::Tensor& src, const at::Tensor& dst);
  // The next step of slots[i] is hinted by the entry of draft accepted[i] of its last step.
  void commit(const at::Tensor& slots, const at::Tensor& accepted);

  // int32 [layers, slots, depth, kStateHeader + hint_size]; see StateWord in common/params.h.
  const at::Tensor& state() const { return state_; }
  at::Device device() const { return state_.device(); }
  int64_t layers() const { return state_.size(0); }
  int64_t slots() const { return state_.size(1); }
  int64_t depth() const { return state_.size(2); }
  int64_t k() const { return k_; }
  int64_t hint_size() const;
  // Bytes of device memory that the cache holds.
  int64_t nbytes() const;

 private:
  // One dimension of [layers * slots (+ 1 spare), depth, words]: the entry of every layer for these
  // slots, or the spare one for a slot out of range.
  at::Tensor entries_of(const at::Tensor& slots, const char* name) const;

  int64_t k_;
  at::Tensor entries_;  // state_ as [layers * slots, depth, words], and one spare entry behind it
  at::Tensor state_;
};

}  // namespace gvr
