"""The line between Chorus's own faults and all others."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def faults(pack_module):
    return pack_module("chorus.comfy.faults")


@pytest.fixture(scope="module")
def messages(pack_module):
    return pack_module("chorus.messages")


def test_an_error_in_own_work_is_named_and_keeps_its_cause(faults):
    with pytest.raises(faults.OwnFault, match="ZeroDivisionError: division by zero") as raised, faults.own_work():
        _ = 1 / 0
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_fault_within_a_fault_is_told_once(faults):
    with pytest.raises(faults.OwnFault) as raised, faults.own_work(), faults.own_work():
        _ = 1 / 0
    assert str(raised.value) == "ZeroDivisionError: division by zero"


def test_interrupts_and_reasons_to_leave_a_run_alone_pass_as_they_are(faults, messages, comfy_host):
    from comfy.model_management import InterruptProcessingException

    for error in (InterruptProcessingException(), KeyboardInterrupt(), faults.Unsuitable(messages.say("lookup.off"))):
        with pytest.raises(type(error)) as raised, faults.own_work():
            raise error
        assert raised.value is error


def test_after_a_fault_a_node_gives_what_its_fallback_makes_of_the_sentence(faults, caplog):
    class Node:
        @classmethod
        @faults.never_lost(lambda said, **inputs: (said, inputs))
        def execute(cls, value: int, other: str) -> float:
            return 1 / value

    assert Node.execute(value=2, other="x") == 0.5
    said, inputs = Node.execute(value=0, other="x")
    assert said.code == "bypassed.fault" and "ZeroDivisionError: division by zero" in str(said)
    assert inputs == {"value": 0, "other": "x"}
    assert str(said) in caplog.text
    assert Node.execute.__name__ == "execute"


def test_what_the_person_has_to_mend_and_interrupts_are_no_faults(faults, messages, comfy_host):
    from comfy.model_management import InterruptProcessingException

    for error in (messages.BadInput(messages.say("masks.connect")), InterruptProcessingException()):

        @faults.never_lost(lambda said, **inputs: None)
        def execute(cls, error: BaseException) -> None:
            raise error

        with pytest.raises(type(error)):
            execute(None, error=error)
