"""The plan of a request: a value to which every stage node adds its part."""

from __future__ import annotations

import pytest

from chorus.messages import say
from chorus.reuse.plan import Plan


def plan(name: str = "one") -> Plan:
    return Plan(name, "default", reads=True, writes=True, prompt="a red circle", explanation=say("miss.empty"))


def test_a_stage_makes_a_new_plan_and_its_seconds_add_up():
    first = plan()
    second = first.with_stage("reuse", 1, 0.25).with_stage("regions", 2, 0.5)
    assert not first.stages and not first.stage_seconds
    assert second.stages == {"reuse": 1, "regions": 2}
    assert second.stage_seconds == pytest.approx(0.75)


def test_a_stage_that_is_set_again_counts_once():
    assert plan().with_stage("reuse", 1).with_stage("reuse", 2).stages == {"reuse": 2}


def test_stages_of_one_lookup_merge_whatever_branch_they_lie_on():
    left, right = plan().with_stage("reuse", 1, 0.25), plan().with_stage("regions", 2, 0.5)
    assert left.merged(right).stages == right.merged(left).stages == {"reuse": 1, "regions": 2}
    # The two were wired side by side, so neither time is part of the other.
    assert left.merged(right).stage_seconds == right.merged(left).stage_seconds == 0.5


def test_where_both_have_a_stage_the_later_node_counts():
    earlier, later = plan().with_stage("reuse", 1), plan().with_stage("reuse", 2)
    assert later.merged(earlier).stages == {"reuse": 2}


def test_another_lookups_plan_on_the_model_is_replaced():
    later = plan("two").with_stage("reuse", 2)
    assert later.merged(plan("one").with_stage("regions", 1)) is later
    assert later.merged(None) is later


def test_without_a_source_a_plan_is_no_hit():
    assert not plan().hit
