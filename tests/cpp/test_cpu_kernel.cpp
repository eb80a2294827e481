// SPDX-License-Identifier: Apache-2.0
// The CPU kernel against a sort, over every instruction set, path and dtype. Comparisons are exact.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/common/order.h"
#include "../../csrc/common/plan.h"
#include "../../csrc/common/rows.h"
#include "../../csrc/cpu/scores.h"
#include "../../csrc/cpu/select.h"
#include "../../csrc/cpu/vector_ops.h"
#include "catch.h"
#include "raw_scores.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

using namespace gvr;
using gvr::cpu::Isa;
using gvr::cpu::RangeBody;
using gvr::cpu::score_bytes;
using gvr::cpu::visit_dtype;
using gvr::test::narrow;
using gvr::test::widen;
using Random = std::mt19937;

constexpr Isa kIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512};
constexpr ScoreType kTypes[] = {ScoreType::kFloat32, ScoreType::kBFloat16, ScoreType::kFloat16};
constexpr Algorithm kAlgorithms[] = {Algorithm::kAuto, Algorithm::kGvr, Algorithm::kStream,
                                     Algorithm::kRadix};
constexpr int32_t kSentinel = -7;
constexpr int32_t kGuard = 24;

void on_this_thread(int64_t count, int64_t, const RangeBody& body) { body(0, count); }

void on_three_threads(int64_t count, int64_t grain, const RangeBody& body) {
  const int64_t share = std::max((count + 2) / 3, grain);
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < count; begin += share) {
    threads.emplace_back(body, begin, std::min(begin + share, count));
  }
  for (std::thread& thread : threads) thread.join();
}

// What a runtime may do too: one thread, the last part first.
void backwards(int64_t count, int64_t, const RangeBody& body) {
  for (int64_t i = count; i-- > 0;) body(i, i + 1);
}

auto* runtime_of(int32_t threads) {
  if (threads == 1) return on_this_thread;
  return threads == 2 ? backwards : on_three_threads;
}

// Rows of raw score bits at any base alignment. Nothing follows the last score of the last row, so
// that a sanitizer sees every read beyond it.
struct Scores {
  ScoreType dtype;
  int64_t stride;
  std::vector<char> bytes;
  int32_t shift;  // in scores

  Scores(ScoreType type, int64_t rows, int32_t n, int32_t gap, int32_t misalignment)
      : dtype(type),
        stride(n + gap),
        bytes((misalignment + (rows - 1) * stride + n) * score_bytes(type)),
        shift(misalignment) {}
  const void* data() const { return bytes.data() + shift * score_bytes(dtype); }
  uint32_t get(int64_t row, int64_t i) const {
    uint32_t raw = 0;
    std::memcpy(&raw, bytes.data() + (shift + row * stride + i) * score_bytes(dtype),
                score_bytes(dtype));
    return raw;
  }
  void set(int64_t row, int64_t i, uint32_t raw) {
    std::memcpy(bytes.data() + (shift + row * stride + i) * score_bytes(dtype), &raw,
                score_bytes(dtype));
  }
};

std::vector<int32_t> reference(const Scores& scores, const TopKParams& p, int64_t row) {
  const RowWindow window = row_window(p, row);
  std::vector<uint64_t> ranks;
  for (int32_t i = window.begin; i < window.end; ++i) {
    ranks.push_back(rank_key(ordered_key(widen(p.dtype, scores.get(row, i))), i));
  }
  std::sort(ranks.begin(), ranks.end(), std::greater<uint64_t>());
  ranks.resize(std::min<size_t>(ranks.size(), p.k));
  std::vector<int32_t> indices;
  for (const uint64_t rank : ranks) indices.push_back(rank_key_index(rank));
  if (!p.sorted) std::sort(indices.begin(), indices.end());
  indices.resize(p.k, -1);
  return indices;
}

struct Answer {
  std::vector<int32_t> indices;
  std::vector<char> values;
  std::vector<int32_t> stats;
};

struct Run {
  Tuning tuning;
  Isa isa = Isa::kAvx512;
  int32_t threads = 1;
  bool with_values = true;
};

// Runs the kernel into guarded outputs and compares every word with the reference.
Answer check(const Scores& scores, TopKParams p, const Run& run) {
  p.scores = scores.data();
  p.dtype = scores.dtype;
  p.score_stride = scores.stride;
  const int64_t width = score_bytes(p.dtype);
  p.indices_stride = p.k + kGuard;
  p.values_stride = p.k + kGuard;
  Answer answer;
  answer.indices.assign(p.rows * p.indices_stride + kGuard, kSentinel);
  answer.values.assign((p.rows * p.values_stride + kGuard) * width, static_cast<char>(0x5A));
  answer.stats.assign(p.rows * kStatColumns, kSentinel);
  p.indices = answer.indices.data() + kGuard;
  p.values = run.with_values ? answer.values.data() + kGuard * width : nullptr;
  p.stats = answer.stats.data();
  gvr::cpu::select_rows(p, run.tuning, {run.threads, run.isa, runtime_of(run.threads)});

  bool untouched = true;
  bool equal = true;
  bool bitwise = true;
  const uint32_t minus_inf = narrow(p.dtype, -std::numeric_limits<float>::infinity());
  const std::vector<char> guard(kGuard * width, static_cast<char>(0x5A));
  for (int64_t row = 0; row < p.rows; ++row) {
    const int32_t* got = p.indices + row * p.indices_stride;
    const std::vector<int32_t> expected = reference(scores, p, row);
    equal &= std::equal(expected.begin(), expected.end(), got);
    untouched &= std::count(got - kGuard, got, kSentinel) == kGuard;
    untouched &= std::count(got + p.k, got + p.k + kGuard, kSentinel) == kGuard;
    const char* value = answer.values.data() + (kGuard + row * p.values_stride) * width;
    untouched &= std::memcmp(value - kGuard * width, guard.data(), guard.size()) == 0;
    for (int32_t i = 0; run.with_values && i < p.k; ++i) {
      uint32_t raw = 0;
      std::memcpy(&raw, value + i * width, width);
      bitwise &= raw == (expected[i] < 0 ? minus_inf : scores.get(row, expected[i]));
    }
  }
  CHECK(equal);
  CHECK(bitwise);
  CHECK(untouched);
  return answer;
}

TopKParams shape(int64_t rows, int32_t n, int32_t k) { return {.n = n, .k = k, .rows = rows}; }

// What the score at position i of a row of n may be made from.
struct Draw {
  ScoreType dtype;
  Random& random;
  int32_t i;
  int32_t n;
  uint32_t operator()(float value) const { return narrow(dtype, value); }
  uint32_t bits() const {
    return static_cast<uint32_t>(random()) & (dtype == ScoreType::kFloat32 ? ~0u : 0xFFFFu);
  }
  float normal() const { return std::normal_distribution<float>()(random); }
  bool chance(uint32_t percent) const { return random() % 100 < percent; }
};

uint32_t subnormal_bits(ScoreType dtype) {
  return dtype == ScoreType::kFloat32   ? 0x80000FFFu
         : dtype == ScoreType::kFloat16 ? 0x83FFu
                                        : 0x807Fu;
}

struct RowKind {
  const char* name;
  uint32_t (*score)(const Draw& d);
};

constexpr float kInf = std::numeric_limits<float>::infinity();

const std::vector<RowKind>& row_kinds() {
  static const std::vector<RowKind> kinds = {
      {"normal", [](const Draw& d) { return d(d.normal()); }},
      {"constant", [](const Draw& d) { return d(1.5f); }},
      {"ascending", [](const Draw& d) { return d(0.5f * d.i - 99); }},
      {"descending", [](const Draw& d) { return d(0.5f * (d.n - d.i)); }},
      {"33 levels", [](const Draw& d) { return d(d.random() % 33 / 8.0f - 2); }},
      {"half zeros", [](const Draw& d) { return d(std::max(0.0f, d.normal())); }},
      {"99 % zeros", [](const Draw& d) { return d(d.chance(1) ? d.normal() : 0.0f); }},
      {"both zeros", [](const Draw& d) { return d(d.chance(5) ? 1.0f
                                                  : d.i % 2   ? 0.0f
                                                              : -0.0f); }},
      {"two levels", [](const Draw& d) { return d(d.i % 7 == 0 || d.i > d.n / 2 ? 2.0f : 1.0f); }},
      {"low bits", [](const Draw& d) { return d(1.0f) + d.bits() % 64; }},
      {"random bits", [](const Draw& d) { return d.bits(); }},
      {"NaN", [](const Draw& d) { return d(bits_float(0x7FC00001u | d.bits() << 31)); }},
      {"infinities",
       [](const Draw& d) {
         return d(d.chance(50) ? d.normal() : d.i % 2 ? kInf : -kInf);
       }},
      {"few numbers", [](const Draw& d) { return d(d.chance(1) ? d.normal() : -kInf); }},
      {"subnormal", [](const Draw& d) { return d.bits() & subnormal_bits(d.dtype); }},
      {"one tile", [](const Draw& d) { return d(d.normal() + (d.i / 128 == d.n / 200 ? 9 : 0)); }},
      {"peaks at a stride", [](const Draw& d) { return d(d.normal() + (d.i % 64 == 0 ? 5 : 0)); }},
      {"late cliff", [](const Draw& d) { return d(d.i > d.n - 300 ? 3e4f : -1e-3f * d.normal()); }},
  };
  return kinds;
}

bool chance(Random& random, uint32_t percent) { return random() % 100 < percent; }

Scores make_rows(const RowKind& kind, ScoreType dtype, int64_t rows, int32_t n, Random& random) {
  Scores scores(dtype, rows, n, 3, static_cast<int32_t>(random() % 17));
  for (int64_t row = 0; row < rows; ++row) {
    for (int32_t i = 0; i < n; ++i) scores.set(row, i, kind.score({dtype, random, i, n}));
  }
  return scores;
}

Tuning random_tuning(Random& random) {
  Tuning tuning;
  if (chance(random, 60)) tuning.staging = 1 + random() % 600;
  if (chance(random, 50)) tuning.chunk = 1 + random() % 300;
  if (chance(random, 30)) tuning.max_verify = 1 + random() % 40;
  if (chance(random, 30)) tuning.ctas_per_row = 1 + random() % 5;
  tuning.force_undershoot = chance(random, 20);
  tuning.ignore_hint = chance(random, 20);
  return tuning;
}

std::vector<int32_t> random_hint(Random& random, int32_t size, int32_t n) {
  std::vector<int32_t> hint(size);
  const uint32_t kind = random() % 6;
  const int32_t one = static_cast<int32_t>(random() % n);
  for (int32_t i = 0; i < size; ++i) {
    const auto any = static_cast<int32_t>(random());
    const int32_t choices[] = {any, one, -1, i, INT32_MAX - i, static_cast<int32_t>(random() % n)};
    hint[i] = choices[kind];
  }
  return hint;
}

struct StateTable {
  static constexpr int32_t kSlots = 4, kDepth = 2, kHints = 50;
  static constexpr int32_t kWidth = kStateHeader + kHints;
  std::vector<int32_t> words = std::vector<int32_t>(kSlots * kDepth * kWidth + 2 * kGuard, 0);
  int32_t* data() { return words.data() + kGuard; }
  int32_t* entry(int32_t slot, int32_t draft) { return data() + (slot * kDepth + draft) * kWidth; }
  void attach(TopKParams& p, const std::vector<int32_t>& slots) {
    p.state = data();
    p.slots = slots.data();
    p.state_slots = kSlots;
    p.state_depth = kDepth;
    p.state_hints = kHints;
  }
};

}  // namespace

TEST_CASE("a floor's score separates exactly the keys above it", "[cpu]") {
  for (const uint32_t bits :
       {0x00000000u, 0x80000000u, 0x00000001u, 0x80000001u, 0x80000002u, 0x3F800000u, 0xBF800000u,
        0x7F7FFFFFu, 0xFF7FFFFFu, 0x7F800000u, 0xFF800000u, 0x7FC00000u, 0xFFC00001u}) {
    for (const int32_t step : {-2, -1, 0, 1, 2}) {
      const uint32_t floor = ordered_key(bits) + step;
      if (floor == kKeyNan || (step > 0 && floor < ordered_key(bits))) continue;
      for (uint32_t raw = 0; raw < 0x10000u; ++raw) {
        const uint32_t other = raw << 16 | (raw & 3u);
        const bool above = !(bits_float(other) <= gvr::cpu::floor_score(floor));
        if (above != (ordered_key(other) > floor)) FAIL_CHECK(floor << " against " << other);
      }
    }
  }
}

TEST_CASE("every instruction set sees the same scores, whatever the offset", "[cpu]") {
  Random random(3);
  for (const ScoreType dtype : kTypes) {
    const Scores row = make_rows(row_kinds()[10], dtype, 1, 700, random);
    const auto& expected = gvr::cpu::vector_ops(dtype, Isa::kScalar);
    for (int32_t trial = 0; trial < 300; ++trial) {
      const int32_t begin = random() % 300;
      const int32_t end = begin + random() % 400;
      const uint32_t floor = trial % 4 == 0 ? gvr::cpu::kFloorAll : static_cast<uint32_t>(random());
      std::vector<int32_t> want(end - begin + gvr::cpu::kVectorSlack);
      want.resize(expected.collect(row.data(), begin, end, floor, want.data()));
      for (const Isa isa : kIsas) {
        const auto& ops = gvr::cpu::vector_ops(dtype, isa);
        std::vector<int32_t> got(end - begin + gvr::cpu::kVectorSlack);
        got.resize(ops.collect(row.data(), begin, end, floor, got.data()));
        REQUIRE(got == want);
        REQUIRE(ops.count(row.data(), begin, end, floor) == static_cast<int32_t>(want.size()));
      }
    }
  }
}

TEST_CASE("every instruction set treats staged keys alike", "[cpu]") {
  Random random(4);
  for (int32_t trial = 0; trial < 900; ++trial) {
    const ScoreType dtype = kTypes[trial % 3];
    const Scores row = make_rows(row_kinds()[10], dtype, 1, 600, random);
    const auto count = static_cast<int32_t>(1 + random() % 600);
    const size_t room = count + gvr::cpu::kVectorSlack;
    std::vector<int32_t> indices(room);
    for (int32_t i = 0; i < count; ++i) indices[i] = static_cast<int32_t>(random() % 600);
    const auto& scalar = gvr::cpu::vector_ops(dtype, Isa::kScalar);
    std::vector<uint32_t> keys(room), inside(room);
    const auto range = scalar.gather_keys(row.data(), indices.data(), count, keys.data());
    const uint32_t key = keys[random() % count];
    const gvr::cpu::Cut cut{key, static_cast<int32_t>(random() % 600)};
    inside.resize(scalar.extract(keys.data(), count, {key, range.high}, inside.data()));
    std::vector<uint32_t> kept_keys = keys;
    std::vector<int32_t> kept = indices;
    kept.resize(scalar.keep(kept_keys.data(), kept.data(), count, cut));
    for (const Isa isa : kIsas) {
      const auto& ops = gvr::cpu::vector_ops(dtype, isa);
      std::vector<uint32_t> got(room), got_inside(room);
      const auto got_range = ops.gather_keys(row.data(), indices.data(), count, got.data());
      REQUIRE(std::equal(got.begin(), got.begin() + count, keys.begin()));
      REQUIRE((got_range.low == range.low && got_range.high == range.high));
      REQUIRE(ops.count_keys(got.data(), count, key) == scalar.count_keys(keys.data(), count, key));
      got_inside.resize(ops.extract(got.data(), count, {key, range.high}, got_inside.data()));
      REQUIRE(got_inside == inside);
      std::vector<int32_t> left = indices;
      left.resize(ops.keep(got.data(), left.data(), count, cut));
      REQUIRE(left == kept);
      REQUIRE(std::equal(got.begin(), got.begin() + left.size(), kept_keys.begin()));
    }
  }
}

TEST_CASE("every kind of row is answered exactly on every path", "[cpu]") {
  Random random(5);
  for (const RowKind& kind : row_kinds()) {
    for (const ScoreType dtype : kTypes) {
      for (const Algorithm algorithm : kAlgorithms) {
        for (const Isa isa : kIsas) {
          INFO(kind.name << ", dtype " << static_cast<int>(dtype) << ", "
                         << algorithm_name(algorithm) << ", isa " << static_cast<int>(isa));
          const auto n = static_cast<int32_t>(1500 + random() % 1500);
          const int32_t k = std::vector<int32_t>{1, 31, 256, 700}[random() % 4];
          const Scores scores = make_rows(kind, dtype, 2, n, random);
          TopKParams p = shape(2, n, k);
          p.algorithm = algorithm;
          p.sorted = chance(random, 50);
          check(scores, p, {random_tuning(random), isa, chance(random, 20) ? 3 : 1, true});
        }
      }
    }
  }
}

TEST_CASE("rows around k scores long keep all their indices", "[cpu]") {
  Random random(7);
  for (const ScoreType dtype : kTypes) {
    for (const int32_t k : {1, 2, 16, 17, 255, 1024}) {
      for (const int32_t n : {0, 1, k - 1, k, k + 1, k + 2, 2 * k, 2 * k + 1}) {
        for (const Algorithm algorithm : kAlgorithms) {
          const Scores scores =
              make_rows(row_kinds()[random() % row_kinds().size()], dtype, 3, n, random);
          TopKParams p = shape(3, n, k);
          p.algorithm = algorithm;
          p.sorted = chance(random, 50);
          INFO("n " << n << ", k " << k << ", " << algorithm_name(algorithm));
          check(scores, p, {random_tuning(random), Isa::kAvx512, 1, chance(random, 80)});
        }
      }
    }
  }
}

TEST_CASE("the answer does not depend on the hint", "[cpu]") {
  Random random(11);
  for (int32_t trial = 0; trial < 200; ++trial) {
    const RowKind& kind = row_kinds()[trial % row_kinds().size()];
    const auto n = static_cast<int32_t>(1200 + random() % 3000);
    const auto k = static_cast<int32_t>(1 + random() % 600);
    const auto size = static_cast<int32_t>(1 + random() % 900);
    const Scores scores = make_rows(kind, kTypes[trial % 3], 1, n, random);
    const std::vector<int32_t> hint = random_hint(random, size, n);
    TopKParams p = shape(1, n, k);
    p.hint = hint.data();
    p.hint_size = size;
    p.hint_offset = chance(random, 50) ? 0 : static_cast<int64_t>(random() % 5000) - 2500;
    p.algorithm = kAlgorithms[random() % 4];
    INFO(kind.name << ", n " << n << ", k " << k << ", " << algorithm_name(p.algorithm));
    const Answer answer = check(scores, p, {random_tuning(random), kIsas[random() % 3], 1, true});
    const int32_t valid = answer.stats[kStatHintValid];
    const int32_t hits = answer.stats[kStatHintHits];
    CHECK((0 <= hits && hits <= valid && valid <= size));
  }
}

TEST_CASE("a perfect hint hits everything and needs one reading", "[cpu]") {
  Random random(13);
  const Scores scores = make_rows(row_kinds()[0], ScoreType::kFloat32, 1, 60000, random);
  TopKParams p = shape(1, 60000, 512);
  p.scores = scores.data();
  const std::vector<int32_t> hint = reference(scores, p, 0);
  p.hint = hint.data();
  p.hint_size = 512;
  const Answer answer = check(scores, p, {});
  CHECK(answer.stats[kStatHintValid] == 512);
  CHECK(answer.stats[kStatHintHits] == 512);
  CHECK(answer.stats[kStatPasses] == 1);
  CHECK(answer.stats[kStatPath] == static_cast<int32_t>(Path::kStream));
  CHECK(answer.stats[kStatSurvivors] >= 512);
}

TEST_CASE("each algorithm reports its own path", "[cpu]") {
  Random random(17);
  const Scores scores = make_rows(row_kinds()[0], ScoreType::kFloat32, 1, 20000, random);
  constexpr Path kPaths[] = {Path::kStream, Path::kGvr, Path::kStream, Path::kRadix};
  TopKParams p = shape(1, 20000, 300);
  for (int32_t i = 0; i < 4; ++i) {
    p.algorithm = kAlgorithms[i];
    CHECK(check(scores, p, {}).stats[kStatPath] == static_cast<int32_t>(kPaths[i]));
  }
}

TEST_CASE("a full staging area and an empty one both continue exactly", "[cpu]") {
  Random random(19);
  const Scores rising = make_rows(row_kinds()[2], ScoreType::kFloat32, 1, 5000, random);
  Run run;
  run.tuning.staging = 1;
  CHECK(check(rising, shape(1, 5000, 100), run).stats[kStatOverflows] > 0);
  run.tuning = {};
  run.tuning.force_undershoot = 1;
  CHECK(check(rising, shape(1, 5000, 100), run).stats[kStatUndershoots] > 0);
}

TEST_CASE("scores outside the window change nothing", "[cpu]") {
  Random random(23);
  for (int32_t trial = 0; trial < 150; ++trial) {
    const int32_t next_n = 1 + trial % 3;
    const int64_t requests = 3;
    const auto n = static_cast<int32_t>(500 + random() % 2500);
    Scores scores = make_rows(row_kinds()[0], kTypes[trial % 3], requests * next_n, n, random);
    std::vector<int64_t> lengths = {static_cast<int64_t>(random() % (2 * n)) - 5, n / 2,
                                    std::numeric_limits<int64_t>::max()};
    std::vector<int32_t> starts = {static_cast<int32_t>(random() % n) - 3, 0,
                                   static_cast<int32_t>(random() % n)};
    TopKParams p = shape(requests * next_n, n, static_cast<int32_t>(1 + random() % 400));
    p.next_n = next_n;
    p.compress_ratio = 1 + trial % 4;
    p.lengths = lengths.data();
    p.lengths_int64 = true;
    if (chance(random, 50)) p.starts = starts.data();
    p.algorithm = kAlgorithms[random() % 4];
    for (int64_t row = 0; row < p.rows; ++row) {
      const RowWindow window = row_window(p, row);
      for (int32_t i = 0; i < n; ++i) {
        if (i < window.begin || i >= window.end) scores.set(row, i, narrow(scores.dtype, 3e38f));
      }
    }
    const int32_t threads = chance(random, 50) ? 3 : 1;
    check(scores, p, {random_tuning(random), kIsas[random() % 3], threads, true});
  }
}

TEST_CASE("slices and threads do not change the answer", "[cpu]") {
  Random random(29);
  for (const RowKind& kind : row_kinds()) {
    INFO(kind.name);
    Scores scores = make_rows(kind, ScoreType::kFloat32, 2, 70000, random);
    TopKParams p = shape(2, 70000, 1000);
    p.algorithm = kAlgorithms[random() % 4];
    check(scores, p, {{}, Isa::kAvx512, 3, true});
    Run run;
    run.tuning.ctas_per_row = 4;
    for (run.threads = 1; run.threads <= 3; ++run.threads) check(scores, p, run);
    // One row for a whole batch, as from expand.
    p.rows = 5;
    scores.stride = 0;
    check(scores, p, {{}, Isa::kAvx512, 3, true});
  }
}

TEST_CASE("a caller that flushes subnormals gets the exact answer", "[cpu]") {
#if defined(__x86_64__)
  Random random(31);
  const uint32_t saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040u);
  for (const ScoreType dtype : kTypes) {
    for (const Isa isa : kIsas) {
      const Scores scores = make_rows(row_kinds()[14], dtype, 1, 3000, random);
      check(scores, shape(1, 3000, 100), {random_tuning(random), isa, 1, true});
    }
  }
  CHECK(_mm_getcsr() >> 6 == (saved | 0x8040u) >> 6);
  _mm_setcsr(saved);
#endif
}

TEST_CASE("rows beyond 2^31 scores are reached", "[cpu]") {
  constexpr int64_t kStride = (int64_t{1} << 30) + 5;
  constexpr int32_t kN = 3000;
  const size_t bytes = (4 * kStride + kN) * 2;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  auto* scores = static_cast<uint16_t*>(memory);
  for (int32_t i = 0; i < kN; ++i)
    scores[4 * kStride + i] = static_cast<uint16_t>(0x3F00 + i % 200);
  TopKParams p = shape(5, kN, 15);
  std::vector<int32_t> indices(5 * 15);
  p.scores = memory;
  p.dtype = ScoreType::kBFloat16;
  p.score_stride = kStride;
  p.indices = indices.data();
  p.indices_stride = 15;
  gvr::cpu::select_rows(p, {}, {1, Isa::kAvx512, on_this_thread});
  for (int32_t i = 0; i < 15; ++i) CHECK(indices[4 * 15 + i] == 199 + 200 * i);
  munmap(memory, bytes);
}

TEST_CASE("the state holds the last answer of its slot", "[cpu]") {
  Random random(41);
  StateTable state;
  const std::vector<int32_t> slots = {2, -1, 0};
  const int32_t n = 3000;
  for (int32_t step = 0; step < 3; ++step) {
    const Scores scores = make_rows(row_kinds()[0], ScoreType::kFloat32, 6, n, random);
    TopKParams p = shape(6, n, 80);
    p.next_n = 2;
    state.attach(p, slots);
    const Answer answer = check(scores, p, {{}, Isa::kAvx512, 3, true});
    for (const auto& [slot, request] : {std::pair{2, 0}, std::pair{0, 2}}) {
      for (int32_t draft = 0; draft < 2; ++draft) {
        const int32_t row = 2 * request + draft;
        const int32_t* entry = state.entry(slot, draft);
        const int32_t* got = answer.indices.data() + kGuard + row * (80 + kGuard);
        const int32_t* stats = answer.stats.data() + row * kStatColumns;
        CHECK(entry[kStateCount] == StateTable::kHints);
        CHECK(std::equal(got, got + StateTable::kHints, entry + kStateHeader));
        CHECK(entry[kStateHits] == (step == 0 ? -1 : stats[kStatHintHits]));
        // Both drafts see the hint of the previous step, not each other's.
        CHECK(stats[kStatHintValid] == (step == 0 ? 0 : StateTable::kHints));
        uint32_t least = kKeyNan;
        for (int32_t i = 0; i < 80; ++i)
          least = std::min(least, ordered_key(scores.get(row, got[i])));
        CHECK(static_cast<uint32_t>(entry[kStateThreshold]) == float_bits(key_to_float(least)));
      }
      CHECK(state.entry(slot, 0)[kStateAccepted] == 1);
    }
  }
  for (const int32_t slot : {1, 3}) {
    const int32_t* entry = state.entry(slot, 0);
    CHECK(std::count(entry, entry + 2 * StateTable::kWidth, 0) == 2 * StateTable::kWidth);
  }
}

TEST_CASE("an empty row and a row without a slot leave the state alone", "[cpu]") {
  Random random(43);
  StateTable state;
  std::iota(state.words.begin(), state.words.end(), 5);
  const std::vector<int32_t> before = state.words;
  const std::vector<int32_t> slots = {1, -3, StateTable::kSlots};
  const std::vector<int32_t> lengths = {-4, 900, 900};
  TopKParams p = shape(3, 1000, 10);
  p.lengths = lengths.data();
  state.attach(p, slots);
  check(make_rows(row_kinds()[0], ScoreType::kFloat32, 3, 1000, random), p, {});
  CHECK(state.words == before);
}

TEST_CASE("a corrupt state costs nothing but time", "[cpu]") {
  Random random(47);
  const std::vector<int32_t> slots = {3, 1};
  for (int32_t trial = 0; trial < 50; ++trial) {
    StateTable state;
    for (int32_t& word : state.words) word = static_cast<int32_t>(random() >> random() % 32);
    const std::vector<int32_t> before = state.words;
    TopKParams p = shape(2, 2000, 60);
    state.attach(p, slots);
    check(make_rows(row_kinds()[trial % row_kinds().size()], kTypes[trial % 3], 2, 2000, random), p,
          {});
    CHECK(std::equal(before.begin(), before.begin() + kGuard, state.words.begin()));
    CHECK(std::equal(before.end() - kGuard, before.end(), state.words.end() - kGuard));
  }
}
