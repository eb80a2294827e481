# SPDX-License-Identifier: Apache-2.0
"""Hostile rows and hints, the exact oracle, and a fuzzer that brings them together.

    python -m gvr_topk.fuzz --device cpu --cases 100000 --seed 1

rows, hints   generators by name
oracle        the exact answer, and the check that a result is that answer
case          one call: its input, how it is made, whether it is answered exactly
draw          a call as a function of (seed, number)
shrink        the smallest call that still fails
campaign      many calls, counted, with evidence
workers       a campaign on several processes
"""
