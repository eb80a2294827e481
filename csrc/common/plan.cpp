// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gvr {
namespace {

int32_t floor_power_of_two(int64_t x) {
  int32_t p = 1;
  while (int64_t{2} * p <= x) p *= 2;
  return p;
}

// One CTA per SM, but never slices so short that a CTA's fixed cost exceeds its reading time. Long
// slices are cut further: two CTAs on an SM read faster than one, and more of them even out what
// the waves of a large batch leave over. Pairs of CTAs pay soonest: they fit anywhere.
// benchmarks/NOTES.md, "CTAs per row".
int32_t choose_ctas_per_row(const Shape& shape, const DeviceInfo& device) {
  constexpr int64_t kLeastSlice = 1024;
  struct Finer {
    int64_t ctas_per_sm, least_slice, most_ctas;
  };
  // 32,000, since rows of 64K and 128K seldom are full.
  constexpr Finer kFiner[] = {
      {2, 32'000, 2}, {2, 64 * 1024, kMaxCluster}, {8, 128 * 1024, kMaxCluster}};
  const int64_t rows = std::max<int64_t>(shape.rows, 1);
  const int64_t one_per_sm = std::min(device.sm_count / rows, shape.n / kLeastSlice);
  int64_t ctas = floor_power_of_two(std::max<int64_t>(1, one_per_sm));
  for (const Finer& finer : kFiner) {
    while (2 * ctas <= finer.most_ctas && 2 * ctas * rows <= finer.ctas_per_sm * device.sm_count &&
           shape.n >= 2 * ctas * finer.least_slice) {
      ctas *= 2;
    }
  }
  return static_cast<int32_t>(std::min<int64_t>(ctas, kMaxCluster));
}

// Shape of the resident kernels: how many CTAs share a row, and how many threads each has.
struct ResidentShape {
  int32_t ctas_per_row;
  int32_t threads;
  int64_t slice;  // scores of one CTA
};

int64_t slice_scores(const Shape& shape, int32_t ctas) {
  const int64_t even = (shape.n + int64_t{ctas} - 1) / ctas;
  return ctas == 1 ? even : (even + 63) / 64 * 64;
}

int64_t most_resident_scores(int32_t threads) { return int64_t{kResidentScores} * threads; }

// Half the SMs are enough to hide the memory's latency, and small clusters start sooner: more than
// eight CTAs only for slices of 8K. A row of fewer than two slices of 4K gains nothing from a
// second CTA. More CTAs, too, where slices would otherwise need the large block.
// benchmarks/NOTES.md, "Rows in shared memory".
ResidentShape choose_resident(const Shape& shape, const DeviceInfo& device, const Tuning& tuning) {
  constexpr int64_t kLeastSlice = 2048;
  const int64_t rows = std::max<int64_t>(shape.rows, 1);
  const int32_t limit = std::max(std::min(device.max_cluster, kMaxCluster), 1);
  const int64_t by_length =
      shape.n < 4 * kLeastSlice
          ? 1
          : std::min(shape.n / kLeastSlice, std::max<int64_t>(8, shape.n / (4 * kLeastSlice)));
  const int64_t wanted = std::min(device.sm_count / 2 / rows, by_length);
  int32_t ctas = std::min(floor_power_of_two(std::max<int64_t>(wanted, 1)), limit);
  while (2 * ctas <= limit && 2 * ctas * rows <= device.sm_count &&
         slice_scores(shape, ctas) > most_resident_scores(kSmallBlock)) {
    ctas *= 2;
  }
  if (tuning.ctas_per_row > 0) ctas = std::min(floor_power_of_two(tuning.ctas_per_row), limit);
  const int64_t slice = slice_scores(shape, ctas);
  // Many rows compete for issue slots: fewer threads each spend less on what is not per score. In
  // large clusters with few winners each, fewer threads are faster to gather at barriers.
  const bool crowded = ctas == 1 && rows > 2 * int64_t{device.sm_count};
  const bool spread = ctas >= 8 && (shape.k <= 1024 || slice <= kLeastSlice);
  int32_t threads = crowded || spread ? kTinyBlock : kSmallBlock;
  while (threads < kLargeBlock && slice > most_resident_scores(threads)) threads *= 2;
  if (tuning.threads > 0) {
    threads = tuning.threads <= kTinyBlock    ? kTinyBlock
              : tuning.threads <= kSmallBlock ? kSmallBlock
                                              : kLargeBlock;
  }
  return {ctas, threads, slice};
}

// Shared memory of a CTA: the histogram and those of the other CTAs, what is ranked, the slice, and
// with `lists` the places of its winners in 16 bits each.
int64_t resident_bytes(const Shape& shape, const ResidentShape& resident, bool lists) {
  const int64_t merged =
      resident.ctas_per_row > 1 ? int64_t{2} * kMaxCluster * std::min(resident.threads, 512) : 0;
  const int64_t score_bytes = shape.dtype == ScoreType::kFloat32 ? 4 : 2;
  const int64_t round = int64_t{16} * resident.threads;
  const int64_t slice = (resident.slice * score_bytes + round - 1) / round * round;
  const int64_t places = lists ? slice / score_bytes * 2 : 0;
  return merged + int64_t{4} * resident.threads + 4096 + slice + places;
}

bool resident_fits(const Shape& shape, const ResidentShape& resident, const DeviceInfo& device) {
  return resident.slice <= most_resident_scores(resident.threads) &&
         resident_bytes(shape, resident, false) <= device.shared_bytes_per_block;
}

// Lists of their own must not take the room of a second CTA on the SM: a GPC then holds fewer
// clusters, perhaps fewer than there are rows. A KiB of each CTA is the system's.
bool lists_fit(const Shape& shape, const ResidentShape& resident, const DeviceInfo& device) {
  const auto fits = [&](bool lists, int ctas) {
    return ctas * (resident_bytes(shape, resident, lists) + 1024) <=
           device.shared_bytes_per_block + 1024;
  };
  return fits(true, 2) || (fits(true, 1) && !fits(false, 2));
}

// A second wave of large blocks costs more than reading the row in pieces, and so do large clusters
// of large blocks, which wait for a free GPC.
bool resident_pays(const Shape& shape, const ResidentShape& resident, const DeviceInfo& device) {
  if (resident.threads <= kSmallBlock && resident.ctas_per_row == 1) return true;
  if (resident.threads == kLargeBlock && resident.ctas_per_row > 4) return false;
  return shape.rows * resident.ctas_per_row <= device.sm_count;
}

}  // namespace

Plan make_plan(const Shape& shape, const DeviceInfo& device, const Tuning& tuning) {
  Plan plan{};
  const ResidentShape resident = choose_resident(shape, device, tuning);
  plan.family = shape.algorithm;
  if (shape.algorithm == Algorithm::kAuto) {
    plan.family =
        resident_pays(shape, resident, device) ? Algorithm::kResident : Algorithm::kStream;
  }
  if (plan.family == Algorithm::kResident && !resident_fits(shape, resident, device)) {
    plan.family = Algorithm::kStream;
  }

  // Staging holds the usual 1.4 K survivors, and after a compaction K and at least as many new
  // ones; where K is small there is room for the surplus of a poor guess.
  const int64_t staging = tuning.staging > 0
                              ? std::max<int64_t>(tuning.staging, int64_t{shape.k} + 32)
                              : std::max<int64_t>(2 * int64_t{shape.k} + 1024, 4096);
  constexpr int64_t kFixedBytes = 40 * 1024;  // a tile ahead, histograms, ranking area, scalars
  const int64_t room = std::max<int64_t>(device.shared_bytes_per_block - kFixedBytes, 0) / 8;
  const int64_t least = int64_t{shape.k} + std::min<int64_t>(shape.k / 4, 1024);
  plan.staging = static_cast<int32_t>(std::min((staging + 3) / 4 * 4, room / 4 * 4));
  if (shape.k > kMaxStagedK || plan.staging < std::min(staging, least)) {
    plan.family = Algorithm::kRadix;
  }

  const int32_t limit = std::min(device.max_cluster, kMaxCluster);
  const int32_t wanted =
      tuning.ctas_per_row > 0 ? tuning.ctas_per_row : choose_ctas_per_row(shape, device);
  plan.ctas_per_row = plan.family == Algorithm::kRadix
                          ? 1
                          : std::min(floor_power_of_two(wanted), std::max(limit, 1));
  if (plan.family == Algorithm::kResident) {
    plan.ctas_per_row = resident.ctas_per_row;
    plan.threads = resident.threads;
    plan.slice = static_cast<int32_t>(resident.slice);
    plan.own_lists = lists_fit(shape, resident, device);
  }
  plan.chunk = tuning.chunk > 0 ? tuning.chunk : 64 * 1024;
  plan.bin_share = tuning.bins > 0 ? std::min(tuning.bins, 256) / 256.0f : 1.0f;
  plan.rank_capacity = tuning.rank_capacity > 0 ? std::min(tuning.rank_capacity, 256) : 256;
  plan.max_verify = tuning.max_verify > 0 ? tuning.max_verify : 6;
  plan.overlaps = device.capability >= 90;
  // `auto` takes none: the row's own sample sets the threshold as well, and gathering the hint is a
  // chain of two dependent loads. benchmarks/NOTES.md, "What the hint is worth".
  plan.use_hint = shape.has_hint && plan.family != Algorithm::kResident &&
                  plan.family != Algorithm::kRadix && tuning.ignore_hint == 0 &&
                  shape.algorithm != Algorithm::kAuto;
  plan.force_undershoot = tuning.force_undershoot != 0;
  return plan;
}

Tuning& thread_tuning() {
  thread_local Tuning tuning;
  return tuning;
}

const char* algorithm_name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kAuto: return "auto";
    case Algorithm::kGvr: return "gvr";
    case Algorithm::kStream: return "stream";
    case Algorithm::kRadix: return "radix";
    case Algorithm::kResident: return "resident";
  }
  return "unknown";
}

Algorithm algorithm_from_name(const char* name) {
  const std::string given(name);
  for (Algorithm a : {Algorithm::kAuto, Algorithm::kGvr, Algorithm::kStream, Algorithm::kRadix,
                      Algorithm::kResident}) {
    if (given == algorithm_name(a)) return a;
  }
  throw std::invalid_argument("algorithm: got \"" + given +
                              "\", need \"auto\", \"gvr\", \"resident\", \"stream\" or "
                              "\"radix\"");
}

}  // namespace gvr
