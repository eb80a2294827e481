# SPDX-License-Identifier: Apache-2.0
"""Every known way to break a Top-K has tests, by name; a test that is renamed must be renamed here.

Each line: the defect that shipped somewhere, and the tests that would have found it.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SELECTION, COVERAGE = "hazards/test_selection.py", "hazards/test_coverage.py"
LIFE, CONCURRENCY = "hazards/test_life_cycle.py", "hazards/test_concurrency.py"
EDGES, LARGE, GUARDS = (
    "hazards/test_dispatch_edges.py",
    "hazards/test_large.py",
    "hazards/test_guard_pages.py",
)
STREAMS, CACHE, STATE = "ops/test_streams.py", "ops/test_topk_cache.py", "hazards/test_state.py"
CONTRACT, WINDOWS, SHAPES, OUT = (
    "ops/test_contract.py",
    "ops/test_windows.py",
    "ops/test_shapes.py",
    "ops/test_out.py",
)
PROPERTIES, SERVER, KV = "test_properties.py", "ops/test_server.py", "ops/test_kv.py"
HISTORY = "test_server_history.py"

SELECTION_HAZARDS: dict[str, list[str]] = {
    "undershoot: a poor hint leaves fewer than K": [
        f"{SELECTION}::test_a_poor_hint_never_leaves_fewer_than_k",
        f"{SELECTION}::test_a_poor_hint_at_model_size",
    ],
    "a degenerate hint is emitted verbatim": [
        f"{SELECTION}::test_equal_hinted_scores_are_not_emitted_verbatim",
    ],
    "a plateau wider than the buffer": [
        f"{SELECTION}::test_a_plateau_wider_than_any_buffer_keeps_every_greater_score",
        f"{SELECTION}::test_a_plateau_of_ten_thousand_zeros",
        f"{SELECTION}::test_relu_rows",
    ],
    "boundary ties below bin resolution": [
        f"{SELECTION}::test_boundary_gaps_below_bin_resolution",
    ],
    "greater and equal scores emitted together": [
        f"{SELECTION}::test_a_tie_never_displaces_a_greater_score",
    ],
    "a buffer at its edge": [
        f"{SELECTION}::test_exactly_a_buffer_and_one_more",
        f"{SELECTION}::test_default_buffers_and_one_more",
    ],
    "rows inside one half-precision bin": [
        f"{SELECTION}::test_rows_inside_one_half_precision_bin",
    ],
    "infinities, NaN of both signs, subnormals": [
        f"{SELECTION}::test_infinities_nans_and_subnormals_are_ordinary",
        f"{SELECTION}::test_special_values_around_k",
        f"{SELECTION}::test_a_range_that_overflows_makes_no_infinity_a_winner",
        f"{CONTRACT}::test_minus_infinity_is_selected_before_padding",
    ],
    "n around K, lengths of nothing and less": [
        f"{SELECTION}::test_lengths_around_k_and_not_positive",
        f"{CONTRACT}::test_short_rows_give_every_index_and_then_padding",
        f"{SHAPES}::test_empty_batches_and_empty_rows",
    ],
    "garbage beyond the row's end or before its start": [
        f"{SELECTION}::test_poison_outside_the_window_never_appears",
        f"{WINDOWS}::test_scores_outside_the_window_change_nothing",
        f"{GUARDS}::test_nothing_outside_the_tensors_is_touched",
    ],
    "every edge of the dispatch, one more and one less": [
        f"{EDGES}::test_every_row_length_where_the_choice_changes",
        f"{EDGES}::test_every_number_of_rows_where_the_choice_changes",
        f"{EDGES}::test_every_k_where_the_choice_changes",
        f"{EDGES}::test_a_chunk_longer_than_any_row_changes_nothing",
        f"{SELECTION}::test_every_row_length_around_an_edge",
        f"{SELECTION}::test_every_k_around_an_edge",
        f"{SELECTION}::test_every_row_count_around_an_edge",
    ],
    "misaligned base, odd stride, stride 0, overlapping rows": [
        f"{SELECTION}::test_misaligned_odd_expanded_and_overlapping_rows",
        f"{SHAPES}::test_any_base_alignment",
        f"{SHAPES}::test_expanded_rows_of_stride_zero",
        f"{SHAPES}::test_overlapping_rows",
    ],
    "offsets beyond 32 bits": [
        f"{LARGE}::test_rows_beyond_2_31_elements",
        f"{LARGE}::test_hints_beyond_2_31_elements",
        f"{LARGE}::test_outputs_beyond_2_31_elements",
        f"{LARGE}::test_batches_of_more_scores_than_32_bits_count",
        f"{LARGE}::test_outputs_of_more_than_2_31_indices",
        f"{LARGE}::test_a_state_of_more_than_2_31_words",
    ],
    "a race in shared memory": [
        f"{SELECTION}::test_repeated_calls_of_tie_heavy_rows_agree",
        f"{CONCURRENCY}::test_many_calls_without_draining_the_queue",
    ],
    "a release between blocks without a barrier": [
        f"{CONCURRENCY}::test_many_calls_without_draining_the_queue",
        f"{LIFE}::test_thousands_of_calls_on_several_streams",
    ],
    "spinning on blocks that are not resident": [
        f"{CONCURRENCY}::test_finishes_on_a_device_that_is_busy",
    ],
    "a workspace left dirty, or shared by two streams": [
        f"{SELECTION}::test_a_call_is_right_after_any_other_call",
        f"{STREAMS}::test_two_streams_do_not_share_scratch",
        f"{CONCURRENCY}::test_callers_on_several_threads",
    ],
    "an answer that changes from run to run": [
        f"{SELECTION}::test_the_set_depends_on_nothing_but_the_row",
        f"{PROPERTIES}::test_same_row_any_two_hints_same_answer",
        f"{PROPERTIES}::test_a_row_has_one_answer_in_every_batch",
        f"{PROPERTIES}::test_both_devices_agree_index_for_index",
        f"{LIFE}::test_ten_thousand_replays_of_one_graph",
    ],
    "a hint that is rewritten while it is read": [
        f"{CONCURRENCY}::test_a_hint_that_changes_during_the_call_never_changes_the_answer",
    ],
    "peaks where a sampler looks, all winners in one slice": [
        f"{SELECTION}::test_winners_where_samplers_tiles_and_slices_look",
        f"{SELECTION}::test_a_sample_of_nothing_but",
    ],
    "writing beside the outputs": [
        f"{OUT}::test_every_element_is_written_and_no_other",
        f"{PROPERTIES}::test_nothing_beside_the_outputs_is_written",
    ],
    "a continuation that no test enters": [
        f"{COVERAGE}::test_every_way_through_a_family_is_taken",
        f"{COVERAGE}::test_continuations_are_entered_with_every_dtype",
        f"{COVERAGE}::test_every_path_of_short_rows_is_entered",
        f"{COVERAGE}::test_every_end_of_a_divided_row_is_entered",
        f"{COVERAGE}::test_every_block_and_cluster_of_resident_rows_is_entered_and_falls_back",
    ],
    "a winner placed by another request's page table": [
        f"{KV}::test_every_path_places_its_winners",
        f"{KV}::test_keys_without_a_place_are_minus_one",
    ],
    "memory freed while a kernel runs, or not there at all": [
        f"{LIFE}::test_inputs_may_be_freed_while_the_kernel_waits",
        f"{LIFE}::test_memory_that_is_not_there_is_torchs_error",
        f"{LIFE}::test_a_step_without_memory_leaves_the_state_usable",
    ],
}

STATE_HAZARDS: dict[str, list[str]] = {
    "a slot is given to another request": [
        f"{STATE}::test_a_stale_hint_of_another_request_is_harmless",
        f"{CACHE}::test_reset_forgets_the_given_slots_in_every_layer",
        f"{CACHE}::test_a_state_of_any_bits_is_harmless",
    ],
    "the batch is reordered, requests join and leave": [
        f"{CACHE}::test_the_state_is_keyed_by_slot_not_by_batch_position",
        f"{STATE}::test_requests_that_join_and_leave_keep_their_own_hints",
    ],
    "padded rows of a CUDA graph": [
        f"{CACHE}::test_rows_without_a_slot_leave_the_state_alone",
        f"{CACHE}::test_rows_without_length_leave_the_state_alone",
        f"{CACHE}::test_an_empty_draft_row_leaves_its_entry_alone",
        f"{LIFE}::test_ten_thousand_replays_of_one_graph",
    ],
    "speculative decode": [
        f"{CACHE}::test_draft_rows_share_a_request_and_all_are_accepted_by_default",
        f"{CACHE}::test_commit_chooses_the_draft_that_hints_the_next_step",
        f"{CACHE}::test_commit_acts_on_every_layer",
        f"{STATE}::test_every_draft_is_hinted_by_the_accepted_one",
        f"{STATE}::test_an_accepted_draft_that_does_not_exist_is_the_first",
    ],
    "rollback, beam fork": [
        f"{CACHE}::test_copy_gives_dst_the_entries_of_src",
        f"{CACHE}::test_copy_may_swap",
        f"{CACHE}::test_a_rolled_back_slot_skips_hints_beyond_its_length",
        f"{HISTORY}::test_answers_never_depend_on_the_history",
    ],
    "evicted or compacted keys are renumbered": [
        f"{STATE}::test_hints_to_renumbered_keys_are_harmless",
        f"{SERVER}::test_remap_follows_every_key",
        f"{SERVER}::test_one_map_serves_all_slots_and_drops_what_it_does_not_cover",
        f"{SERVER}::test_wild_maps_drop_keys",
        f"{CACHE}::test_reset_forgets_the_given_slots_in_every_layer",
    ],
    "chunked prefill, prefix hit": [
        f"{STATE}::test_the_last_prefill_row_seeds_its_slot",
        f"{SERVER}::test_seed_leaves_what_a_step_would",
    ],
    "preemption, disaggregation": [
        f"{STATE}::test_a_slot_moves_to_another_cache_with_its_state",
        f"{SERVER}::test_export_and_import_move_a_request",
        f"{SERVER}::test_an_export_travels",
    ],
    "the table: its size, its address, what an entry says": [
        f"{CACHE}::test_memory_is_reported",
        f"{SERVER}::test_bytes_are_counted",
        f"{SERVER}::test_few_hints_are_taken_at_even_distances",
        f"{CACHE}::test_a_narrow_cache_keeps_fewer_hints",
        f"{STATE}::test_a_short_row_remembers_no_threshold",
        f"{CACHE}::test_the_state_stays_at_its_address",
    ],
    "two layers, one buffer": [
        f"{CACHE}::test_layers_do_not_leak",
        f"{LIFE}::test_caches_side_by_side_keep_to_themselves",
    ],
}

HAZARDS = SELECTION_HAZARDS | STATE_HAZARDS
# Hazards of the GPU alone: a CPU has no blocks that wait for each other.
ONLY_ON_THE_GPU = {"spinning on blocks that are not resident"}


@lru_cache
def _tests_of(file: str) -> dict[str, tuple[str, ...]]:
    """Test functions of a file, each with the names of its parameters."""
    tree = ast.parse((TESTS / file).read_text())
    return {
        node.name: tuple(argument.arg for argument in node.args.args)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("hazard", HAZARDS)
def test_every_hazard_has_tests_on_every_device(hazard: str) -> None:
    on_every_device = []
    for name in HAZARDS[hazard]:
        file, _, function = name.partition("::")
        assert function in _tests_of(file), f"{hazard}: no test {name}"
        on_every_device.append("device" in _tests_of(file)[function])
    assert any(on_every_device) != (hazard in ONLY_ON_THE_GPU), hazard


def test_no_hazard_test_is_left_out_of_the_table() -> None:
    named = {name for names in HAZARDS.values() for name in names}
    for file in (SELECTION, STATE):
        for function in _tests_of(file):
            assert f"{file}::{function}" in named, f"{file}::{function} prevents which defect?"
