"""What each step is after a look, as a string with a letter a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chorus.reuse import course
from chorus.reuse.schedule import Schedule

SHARES = st.floats(0.0, 1.0)
STEPS = st.integers(3, 100)


@st.composite
def rules(draw, steps: int) -> course.CourseRule:
    second_look = draw(st.integers(0, steps - 1))
    return course.CourseRule(
        second_look, draw(st.integers(1, steps)), draw(st.integers(1, steps)), 1, 0, 1, draw(st.integers(1, 3))
    )


@st.composite
def courses(draw) -> str:
    """Every course that can be made for a schedule of three steps or more."""
    steps = draw(STEPS)
    made = draw(st.sampled_from(["selective", "skipping", "thinned"]))
    if made == "selective":
        return course.selective_course(steps, draw(rules(steps)))
    if made == "skipping":
        return course.skipping_course(steps, draw(st.integers(1, steps - 1)), draw(st.integers(0, steps - 1)))
    return course.thinned_course(steps, draw(st.integers(1, 2 * steps))).kinds


@given(courses())
def test_every_course_begins_with_a_full_step(kinds):
    assert kinds[0] == "F"
    assert set(kinds) <= set("FS-")
    Schedule(tuple(1.0 - k / len(kinds) for k in range(len(kinds) + 1))).looking(kinds)  # which checks it


@given(STEPS, st.integers(1, 100))
def test_thinning_skips_as_many_steps_as_it_is_told(steps, saved):
    thinned = course.thinned_course(steps, saved)
    kinds, places = thinned.kinds, thinned.places
    assert len(kinds) == steps and kinds.count("-") == min(saved, steps - 2)
    if saved <= steps // 2:
        assert "--" not in kinds, "so few steps can be spread without two of them in a row"
    exact = [k + places.get(k, 0.0) for k in range(steps) if kinds[k] == "F"]
    assert exact == pytest.approx([k * steps / len(exact) for k in range(len(exact))]), "as a shorter schedule has them"
    assert all(0 < share < 1 for share in places.values())


@given(STEPS, st.data())
def test_skipping_computes_every_so_many_steps_and_all_from_some_step_on(steps, data):
    first, refresh = data.draw(st.integers(1, steps - 1)), data.draw(st.integers(0, steps - 1))
    kinds = course.skipping_course(steps, first, refresh)
    assert len(kinds) == steps
    full = range(0, first, refresh) if refresh else [0]
    assert [k for k in range(first) if kinds[k] == "F"] == list(full) and kinds[first:] == "F" * (steps - first)


@given(STEPS)
def test_a_small_change_costs_no_more_than_a_global_one(steps):
    rule = course.calibrated().rule(steps)
    thinned = course.thinned_course(steps, rule.thinned).kinds.count("F")
    kinds = course.skipping_course(steps, min(rule.full_from, steps - 1), rule.refresh, thinned)
    assert kinds.count("F") <= thinned
    assert rule.second_look == 0 or kinds[rule.second_look] == "F", "where the second look is"


@given(STEPS, st.data())
def test_as_many_steps_are_skipped_as_asked_for_or_as_can_be(steps, data):
    saved, refresh = data.draw(st.integers(1, steps - 2)), data.draw(st.integers(0, steps - 1))
    kinds = course.skipping_at_least(steps, saved, refresh)
    most = course.skipping_course(steps, steps - 1, refresh)
    assert len(kinds) == steps and kinds[0] == kinds[-1] == "F"
    assert kinds.count("-") == min(saved, most.count("-"))
    assert {k for k in range(steps) if kinds[k] == "-"} <= {k for k in range(steps) if most[k] == "-"}


@given(STEPS, st.data())
def test_selective_steps_lie_between_full_ones_behind_the_looks(steps, data):
    rule = data.draw(rules(steps))
    kinds = course.selective_course(steps, rule)
    second_look = rule.second_look
    assert len(kinds) == steps
    assert kinds[: max(1, second_look)] == "F" + "-" * max(0, second_look - 1)
    assert all(kinds[k] == "F" for k in range(second_look, steps, rule.every))
    assert all(kinds[k] == "F" for k in range(max(second_look, steps - rule.last), steps))
    for k in range(second_look + 1, steps):
        if kinds[k] != "F":
            since = k - kinds.rindex("F", 0, k)  # the latest full step
            assert kinds[k] == ("S" if (since - 1) % rule.stride == 0 else "-")


@given(courses(), SHARES)
def test_the_cost_counts_full_steps_whole_and_selective_ones_by_their_share(kinds, share):
    each = {"F": 1.0, "S": share, "-": 0.0}
    assert course.cost(kinds, share) == pytest.approx(sum(each[kind] for kind in kinds))


@given(courses(), SHARES, st.floats(0.0, 1.0))
def test_no_more_is_saved_than_allowed_and_only_as_much_is_given_up_as_that_takes(kinds, share, most):
    steps = len(kinds)
    limited = course.at_most_saved(kinds, share, most, 0)
    assert len(limited) == steps
    assert course.cost(limited, share) >= (1.0 - most) * steps - 1e-6
    made_full = [k for k in range(steps) if limited[k] != kinds[k]]
    assert all(limited[k] == "F" for k in made_full)
    if not made_full:
        assert course.cost(kinds, share) >= (1.0 - most) * steps - 1e-6 or kinds == "F" * steps
        return
    assert limited[made_full[0] :] == "F" * (steps - made_full[0]), "it is the last steps that become full"
    again = limited[: made_full[0]] + kinds[made_full[0]] + limited[made_full[0] + 1 :]
    assert course.cost(again, share) < (1.0 - most) * steps, "one step more than needed was made full"


@given(courses(), SHARES, st.floats(0.0, 1.0), st.data())
def test_steps_that_are_over_stay_as_they_are(kinds, share, most, data):
    last_done = data.draw(st.integers(0, len(kinds) - 1))
    limited = course.at_most_saved(kinds, share, most, last_done)
    assert limited[: last_done + 1] == kinds[: last_done + 1]
    rest = limited[last_done + 1 :]
    assert course.cost(limited, share) >= (1.0 - most) * len(kinds) - 1e-6 or set(rest) <= {"F"}


@pytest.mark.parametrize("most", [0.0, 1.0])
def test_at_its_ends_the_limit_allows_nothing_or_everything(most):
    assert course.at_most_saved("FSSF", 0.2, most, 0) == ("FFFF" if most == 0.0 else "FSSF")


@given(STEPS)
def test_the_calibrated_courses_fit_schedules_of_every_length(steps):
    rule = course.calibrated().rule(steps)
    assert all(value >= 0 for value in vars(rule).values())
    first = min(rule.full_from, steps - 1)
    kinds = [course.selective_course(steps, rule), course.skipping_course(steps, first, rule.refresh)]
    assert kinds[0][-1] == kinds[1][-1] == "F"
    for made in [*kinds, course.thinned_course(steps, rule.thinned).kinds]:
        assert len(made) == steps and made[0] == "F"
        assert course.cost(made, 0.0) < steps, "nothing would be saved"


def test_a_calibrated_number_of_steps_has_its_own_rule():
    looks = course.calibrated()
    for steps, rule in looks.rules.items():
        assert looks.rule(steps) == rule


def test_a_second_look_begins_with_nine_steps_and_is_a_full_step_in_every_course():
    looks = course.calibrated()
    second = {steps: looks.rule(steps).second_look for steps in range(3, 201)}
    assert [steps for steps, look in second.items() if not look] == list(range(3, 9))
    for steps, look in second.items():
        rule = looks.rule(steps)
        skipping = course.skipping_course(steps, min(rule.full_from, steps - 1), rule.refresh)
        assert skipping[look] == course.selective_course(steps, rule)[look] == "F"
