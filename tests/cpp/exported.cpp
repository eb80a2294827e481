// SPDX-License-Identifier: Apache-2.0
// A program that knows nothing of Python: it links the operators, loads a package that AOTInductor
// made of them (export_package.py) and checks its answers against a stable sort.
//
//   exported PACKAGE.pt2
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iostream>
#include <numeric>
#include <vector>

namespace {

constexpr int64_t kK = 40;  // as in export_package.py

// The sorted indices of one row by definition, -1 in the tail.
std::vector<int32_t> best(const float* logits, int64_t n) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  order.resize(kK, -1);
  return order;
}

bool check(torch::inductor::AOTIModelPackageLoader& loader, int64_t rows, int64_t n) {
  // Few distinct values: the tie rule decides most of the answer.
  const at::Tensor logits = at::randint(-30, 30, {rows, n}, at::kFloat).div_(8);
  const at::Tensor lengths = at::randint(-2, n + 1, {rows}, at::kLong);
  const at::Tensor indices = loader.run({logits, lengths}).at(0);
  if (indices.scalar_type() != at::kInt || indices.sizes() != at::IntArrayRef({rows, kK})) {
    std::cerr << rows << " x " << n << ": got " << indices.toString() << " of shape "
              << indices.sizes() << '\n';
    return false;
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t length = std::max<int64_t>(0, lengths[row].item<int64_t>());
    const std::vector<int32_t> expected = best(logits[row].const_data_ptr<float>(), length);
    const int32_t* given = indices[row].const_data_ptr<int32_t>();
    if (!std::equal(expected.begin(), expected.end(), given)) {
      std::cerr << rows << " x " << n << ", row " << row << " of length " << length
                << ": not the stable sort's answer\n";
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::cerr << "usage: exported PACKAGE.pt2\n";
    return 2;
  }
  torch::inductor::AOTIModelPackageLoader loader(argv[1]);
  bool exact = true;
  for (const auto& [rows, n] : {std::pair<int64_t, int64_t>{3, 200}, {1, 40}, {17, 5000}}) {
    exact = check(loader, rows, n) && exact;
  }
  std::cout << (exact ? "exact\n" : "not exact\n");
  return exact ? 0 : 1;
} catch (const c10::Error& error) {
  std::cerr << "exported: " << error.what_without_backtrace() << '\n';
  return 1;
} catch (const std::exception& error) {
  std::cerr << "exported: " << error.what() << '\n';
  return 1;
}
