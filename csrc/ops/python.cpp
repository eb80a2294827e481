// SPDX-License-Identifier: Apache-2.0
// The module gvr_topk._C: TopKCache, and what tests need to steer and see the choice of kernel.
#include <torch/extension.h>
#include <torch/version.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "../common/params.h"
#include "../common/plan.h"
#include "topk_cache.h"

namespace py = pybind11;

namespace gvr {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

constexpr std::pair<const char*, int32_t Tuning::*> kTuningFields[] = {
    {"ctas_per_row", &Tuning::ctas_per_row},
    {"threads", &Tuning::threads},
    {"staging", &Tuning::staging},
    {"chunk", &Tuning::chunk},
    {"bins", &Tuning::bins},
    {"rank_capacity", &Tuning::rank_capacity},
    {"max_verify", &Tuning::max_verify},
    {"force_undershoot", &Tuning::force_undershoot},
    {"ignore_hint", &Tuning::ignore_hint},
};
static_assert(sizeof(Tuning) == std::size(kTuningFields) * sizeof(int32_t),
              "every field of Tuning has a name in kTuningFields");

py::dict get_tuning() {
  py::dict result;
  for (const auto& [name, field] : kTuningFields) result[name] = thread_tuning().*field;
  return result;
}

// Fields that are not named return to 0, "leave the choice to make_plan".
void set_tuning(const py::kwargs& overrides) {
  Tuning tuning;
  for (const auto& [key, value] : overrides) {
    const std::string given = py::cast<std::string>(key);
    bool known = false;
    for (const auto& [name, field] : kTuningFields) {
      if (given != name) continue;
      tuning.*field = py::cast<int32_t>(value);
      known = true;
    }
    if (!known) throw py::type_error("tuning: got the unknown field \"" + given + "\"");
  }
  thread_tuning() = tuning;
}

ScoreType score_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return ScoreType::kFloat32;
    case at::kBFloat16: return ScoreType::kBFloat16;
    case at::kHalf: return ScoreType::kFloat16;
    default: throw py::type_error("dtype: need torch.float32, torch.bfloat16 or torch.float16");
  }
}

py::dict plan_dict(int64_t rows, int32_t n, int32_t k, at::ScalarType dtype, bool has_hint,
                   const std::string& algorithm, int32_t sm_count, int32_t capability,
                   int32_t shared_bytes_per_block, int32_t max_cluster) {
  Shape shape{rows, n, k, score_type(dtype), has_hint, Algorithm::kAuto};
  try {
    shape.algorithm = algorithm_from_name(algorithm.c_str());
  } catch (const std::invalid_argument& error) {
    throw py::value_error(error.what());
  }
  const DeviceInfo device{sm_count, capability, shared_bytes_per_block, max_cluster};
  const Plan plan = make_plan(shape, device, thread_tuning());
  py::dict result;
  result["family"] = algorithm_name(plan.family);
  result["ctas_per_row"] = plan.ctas_per_row;
  result["threads"] = plan.threads;
  result["slice"] = plan.slice;
  result["staging"] = plan.staging;
  result["chunk"] = plan.chunk;
  result["bin_share"] = plan.bin_share;
  result["rank_capacity"] = plan.rank_capacity;
  result["max_verify"] = plan.max_verify;
  result["use_hint"] = plan.use_hint;
  result["overlaps"] = plan.overlaps;
  result["force_undershoot"] = plan.force_undershoot;
  return result;
}

py::object step(const TopKCache& cache, const at::Tensor& scores, int64_t layer,
                const OptionalTensor& slots, const OptionalTensor& lengths,
                const OptionalTensor& starts, int64_t next_n, int64_t compress_ratio,
                int64_t hint_offset, bool sorted, const std::string& algorithm, bool return_values,
                bool return_stats) {
  const TopKCache::StepOptions options{starts,      next_n, compress_ratio,
                                       hint_offset, sorted, algorithm};
  const auto without_gil = [&](auto method) {
    py::gil_scoped_release release;
    return (cache.*method)(scores, layer, slots, lengths, options);
  };
  if (return_stats) return py::cast(without_gil(&TopKCache::step_stats));
  if (return_values) return py::cast(without_gil(&TopKCache::step_values));
  return py::cast(without_gil(&TopKCache::step));
}

py::tuple step_kv(const TopKCache& cache, const at::Tensor& scores, int64_t layer,
                  const OptionalTensor& slots, const OptionalTensor& lengths,
                  const OptionalTensor& page_table, int64_t page_size,
                  const OptionalTensor& offsets, const OptionalTensor& row_to_request,
                  bool windows_per_row, const OptionalTensor& starts, int64_t next_n,
                  int64_t compress_ratio, int64_t hint_offset, bool sorted,
                  const std::string& algorithm) {
  const TopKCache::KvOptions kv{page_table, page_size, offsets, {row_to_request, windows_per_row}};
  const TopKCache::StepOptions options{starts,      next_n, compress_ratio,
                                       hint_offset, sorted, algorithm};
  const auto result = [&] {
    py::gil_scoped_release release;
    return cache.step_kv(scores, layer, slots, lengths, kv, options);
  }();
  return py::cast(result);
}

py::tuple step_difference(const TopKCache& cache, const at::Tensor& scores, int64_t layer,
                          const OptionalTensor& slots, const OptionalTensor& lengths,
                          const OptionalTensor& row_to_request, bool windows_per_row,
                          const OptionalTensor& starts, int64_t next_n, int64_t compress_ratio,
                          int64_t hint_offset, bool sorted, const std::string& algorithm) {
  const TopKCache::StepOptions options{starts,      next_n, compress_ratio,
                                       hint_offset, sorted, algorithm};
  const auto result = [&] {
    py::gil_scoped_release release;
    return cache.step_difference(scores, layer, slots, lengths, {row_to_request, windows_per_row},
                                 options);
  }();
  return py::cast(result);
}

void bind_cache(py::module_& m) {
  using NoGil = py::call_guard<py::gil_scoped_release>;
  py::class_<TopKCache>(m, "TopKCache")
      .def(py::init([](int64_t layers, int64_t slots, int64_t k, std::optional<int64_t> hint_size,
                       int64_t depth, const at::Device& device) {
             return TopKCache(layers, slots, k, hint_size, depth, device);
           }),
           py::arg("layers"), py::arg("slots"), py::arg("k"), py::kw_only(),
           py::arg("hint_size") = py::none(), py::arg("depth") = 1,
           py::arg("device") = at::Device(at::kCPU))
      .def("step", &step, py::arg("scores"), py::arg("layer"), py::arg("slots") = py::none(),
           py::arg("lengths") = py::none(), py::kw_only(), py::arg("starts") = py::none(),
           py::arg("next_n") = 1, py::arg("compress_ratio") = 1, py::arg("hint_offset") = 0,
           py::arg("sorted") = false, py::arg("algorithm") = "auto",
           py::arg("return_values") = false, py::arg("return_stats") = false)
      .def("step_kv", &step_kv, py::arg("scores"), py::arg("layer"), py::arg("slots") = py::none(),
           py::arg("lengths") = py::none(), py::kw_only(), py::arg("page_table") = py::none(),
           py::arg("page_size") = 1, py::arg("offsets") = py::none(),
           py::arg("row_to_request") = py::none(), py::arg("windows_per_row") = false,
           py::arg("starts") = py::none(), py::arg("next_n") = 1, py::arg("compress_ratio") = 1,
           py::arg("hint_offset") = 0, py::arg("sorted") = false, py::arg("algorithm") = "auto")
      .def("step_difference", &step_difference, py::arg("scores"), py::arg("layer"),
           py::arg("slots") = py::none(), py::arg("lengths") = py::none(), py::kw_only(),
           py::arg("row_to_request") = py::none(), py::arg("windows_per_row") = false,
           py::arg("starts") = py::none(), py::arg("next_n") = 1, py::arg("compress_ratio") = 1,
           py::arg("hint_offset") = 0, py::arg("sorted") = false, py::arg("algorithm") = "auto")
      .def("seed", &TopKCache::seed, py::arg("layer"), py::arg("slots"), py::arg("indices"),
           NoGil())
      .def("remap", &TopKCache::remap, py::arg("slots"), py::arg("positions"), NoGil())
      .def("export_entries", &TopKCache::export_entries, py::arg("slots"), NoGil())
      .def("import_entries", &TopKCache::import_entries, py::arg("slots"), py::arg("entries"),
           NoGil())
      .def("reset", &TopKCache::reset, py::arg("slots") = py::none(), NoGil())
      .def("copy", &TopKCache::copy, py::arg("src"), py::arg("dst"), NoGil())
      .def("commit", &TopKCache::commit, py::arg("slots"), py::arg("accepted"), NoGil())
      .def_property_readonly("state", &TopKCache::state)
      .def_property_readonly("device", &TopKCache::device)
      .def_property_readonly("layers", &TopKCache::layers)
      .def_property_readonly("slots", &TopKCache::slots)
      .def_property_readonly("depth", &TopKCache::depth)
      .def_property_readonly("k", &TopKCache::k)
      .def_property_readonly("hint_size", &TopKCache::hint_size)
      .def_property_readonly("nbytes", &TopKCache::nbytes);
}

}  // namespace
}  // namespace gvr

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled part of gvr_topk. Use the names that gvr_topk exports.";
  m.attr("torch_version") = TORCH_VERSION;
#ifdef GVR_WITH_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  m.attr("state_header") = static_cast<int32_t>(gvr::kStateHeader);
  gvr::bind_cache(m);
  m.def("get_tuning", &gvr::get_tuning);
  m.def("set_tuning", &gvr::set_tuning);
  m.def("make_plan", &gvr::plan_dict, py::arg("rows"), py::arg("n"), py::arg("k"),
        py::arg("dtype") = at::kFloat, py::arg("has_hint") = false, py::arg("algorithm") = "auto",
        py::kw_only(), py::arg("sm_count") = 132, py::arg("capability") = 90,
        py::arg("shared_bytes_per_block") = 227 * 1024, py::arg("max_cluster") = 16);
}
