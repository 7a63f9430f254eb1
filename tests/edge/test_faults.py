"""The line between Chorus's own faults and all others."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def faults(pack_module):
    return pack_module("chorus.comfy.faults")


@pytest.fixture(scope="module")
def messages(pack_module):
    return pack_module("chorus.messages")


def raised_by(work) -> BaseException:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_error_is_chorus_own_where_its_code_is_the_last_of_the_host_and_the_packs(faults, pack_module):
    import comfy.utils

    schedule = pack_module("chorus.reuse.schedule")
    pooling = pack_module("chorus.prompt.pooling")
    assert faults.is_own(raised_by(lambda: schedule.Schedule((1.0,))))
    assert faults.is_own(raised_by(lambda: pooling.pool_encoding(None)))  # in a library, called by this pack
    assert not faults.is_own(raised_by(lambda: comfy.utils.get_attr(None, "missing")))
    assert not faults.is_own(ValueError("never raised"))


def test_an_error_of_the_host_that_this_pack_called_is_the_hosts(faults, pack_module):
    import comfy.utils

    class Network:
        @staticmethod
        def patched(*args):
            comfy.utils.get_attr(None, "missing")

    call = pack_module("chorus.comfy.networks").Network.patched
    assert not faults.is_own(raised_by(lambda: Network.patched(call)))


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
