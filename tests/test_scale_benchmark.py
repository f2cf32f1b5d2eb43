"""benchmarks/scale.py: the simulation does what it is said to do, with the costs that were measured."""

from __future__ import annotations

import pytest

from benchmarks.cluster import POLICIES, Load, Simulation
from benchmarks.scale import compare, measured_costs, result

COSTS = measured_costs(2048)


def test_costs_are_read_from_the_results() -> None:
    assert COSTS.tower == result("vision", method="server", frames=80)["ms in a row"] / 1e3
    assert 0 < COSTS.warm_prefill < COSTS.prefill and COSTS.embeddings_kept == 2 * measured_costs(1024).embeddings_kept


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_is_the_same_each_time_and_answers_everybody(policy: str) -> None:
    first, second = (Simulation(3, policy, COSTS, Load(seconds=60)).run() for _ in range(2))
    assert first == second
    assert 0 < first["p50 ms"] <= first["p99 ms"] and 0 < first["GPU busy"] <= 1


def test_hashing_finds_later_questions_where_round_robin_does_not() -> None:
    plain, hashed = compare([10], ("round robin", "200 %"), COSTS, 120, private=1.0)
    assert hashed["found, later questions"] > 0.8 > plain["found, later questions"]
    assert hashed["p50 ms"] < plain["p50 ms"]


def test_the_bound_spreads_a_video_that_everybody_asks_about() -> None:
    free, bound = compare([10], ("consistent", "200 %"), COSTS, 300, hot=1 / 3)
    assert bound["p99 ms"] < free["p99 ms"] and bound["found"] > 0.9


def test_what_a_dead_replica_held_is_asked_again() -> None:
    calm = Simulation(3, "200 %", COSTS, Load(seconds=90, faults=False)).run()
    hurt = Simulation(3, "200 %", COSTS, Load(seconds=90)).run()
    assert calm["asked again"] == 0 and hurt["found"] < calm["found"]
