"""Digests by content: what changes them, what must not, and what has none."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

LARGE = (1 << 20) + 4096 + 5  # bytes, no multiple of eight
CHUNK = 1 << 26  # bytes that are copied from a device at once
WITHOUT_DEADLINE = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def content(pack_module):
    return pack_module("chorus.comfy.content")


@pytest.fixture(scope="module")
def tensor_digest(content):
    return content.tensor_digest


@pytest.fixture(scope="module")
def digest(content):
    return content.digest


# -- tensors ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contents() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "small": torch.randint(0, 256, (1001,), dtype=torch.uint8, generator=generator),
        "large": torch.randint(0, 256, (LARGE,), dtype=torch.uint8, generator=generator),
        "several chunks": torch.zeros(CHUNK + 24, dtype=torch.uint8),
    }


@pytest.mark.parametrize("size", ["small", "large"])
def test_any_flipped_bit_changes_the_digest(tensor_digest, contents, size):
    content = contents[size]
    before = tensor_digest(content)

    @WITHOUT_DEADLINE
    @given(st.integers(0, len(content) - 1), st.integers(0, 7))
    def flip(byte, bit):
        content[byte] ^= 1 << bit
        try:
            assert tensor_digest(content) != before
        finally:
            content[byte] ^= 1 << bit

    flip()
    assert tensor_digest(content) == before


def test_a_bit_flipped_at_the_edge_of_a_chunk_counts(tensor_digest, contents):
    content = contents["several chunks"]
    found = {tensor_digest(content)}
    for byte in (0, CHUNK - 1, CHUNK, CHUNK + 23):
        content[byte] ^= 128
        found.add(tensor_digest(content))
        content[byte] ^= 128
    assert len(found) == 5


def test_every_byte_is_read_once(content, contents):
    before = content.counter.bytes
    content.tensor_digest(contents["several chunks"])
    assert content.counter.bytes - before == CHUNK + 24


@pytest.mark.parametrize("size", [1000, LARGE])
def test_exchanged_words_change_the_digest(tensor_digest, size):
    content = torch.arange(size, dtype=torch.int64)
    exchanged = content.clone()
    exchanged[3], exchanged[900] = content[900], content[3]
    assert tensor_digest(content) != tensor_digest(exchanged)


@pytest.mark.parametrize("count", [64, LARGE])
def test_type_and_shape_count(tensor_digest, count):
    content = torch.zeros(4 * count, dtype=torch.uint8)
    views = [content, content.view(torch.float32), content.view(torch.int32), content.view(torch.bfloat16)]
    views += [content.view(2, -1), content.view(-1, 2), content.view(1, 4 * count)]
    assert len({tensor_digest(v) for v in views}) == len(views)


@pytest.mark.parametrize("size", [0, 1, 1001, LARGE])
def test_equal_content_has_equal_digests(tensor_digest, size):
    content = torch.arange(size, dtype=torch.float32)
    assert tensor_digest(content) == tensor_digest(content.clone())


def test_a_view_has_the_digest_of_its_copy(tensor_digest):
    content = torch.randn(700, 900, generator=torch.Generator().manual_seed(2))
    for view in (content.T, content[:, ::2], content[1:], content[:0]):
        assert tensor_digest(view) == tensor_digest(view.clone())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_large_view_from_any_position_has_the_digest_of_its_copy(tensor_digest, dtype, start):
    view = torch.arange(LARGE, dtype=torch.int32).to(dtype)[start:]
    assert tensor_digest(view) == tensor_digest(view.clone())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.bool, torch.float64, torch.complex64])
@pytest.mark.parametrize("size", [17, LARGE])
def test_every_type_of_weight_has_a_digest(tensor_digest, dtype, size):
    zeros = torch.zeros(size).to(dtype)
    other = zeros.clone()
    other[size // 2] = 1
    assert tensor_digest(zeros) != tensor_digest(other)


def test_a_number_has_a_digest(tensor_digest):
    assert tensor_digest(torch.tensor(1.0)) != tensor_digest(torch.tensor(2.0))


def test_a_parameter_has_the_digest_of_its_tensor(tensor_digest):
    weight = torch.arange(6.0)
    assert tensor_digest(torch.nn.Parameter(weight)) == tensor_digest(weight)


def test_a_quantised_tensor_is_its_stored_parts(tensor_digest):
    from comfy.quant_ops import QuantizedTensor

    def quantised(layout: str = "TensorCoreFP8E4M3Layout", **options) -> torch.Tensor:
        weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
        return QuantizedTensor.from_float(weight, layout, **options)

    scaled = quantised(scale="recalculate")
    variants = [scaled, quantised(scale=2.0), quantised("TensorCoreFP8E5M2Layout"), scaled.dequantize()]
    assert len({tensor_digest(variant) for variant in variants}) == len(variants)
    assert tensor_digest(quantised(scale="recalculate")) == tensor_digest(scaled)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.empty(2, 3, device="meta"), r"placeholder of shape \(2, 3\)"),
        (lambda: torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "layout"),
    ],
    ids=["placeholder", "sparse", "nested"],
)
def test_a_tensor_without_plain_bytes_is_not_understood(content, make, why):
    for refused in (content.tensor_digest, content.digest):
        with pytest.raises(content.NotUnderstood, match=why):
            refused(make())


# -- plain data -------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = 1
    GREEN = 2


class Number(IntEnum):
    ONE = 1


# Values that a careless digest would take for one another.
LEAVES = [None, False, True, 0, 1, 0.0, -0.0, 1.0, "", "0", "1", "None", b"", b"1", "a;", "[", "\ud800"]
VALUES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=2),
    max_leaves=5,
)


def typed(value) -> object:
    """What tells two values of `VALUES` apart, as something to compare."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    return [typed(inner) for inner in value] if isinstance(value, list) else (type(value), repr(value))


def test_no_value_is_taken_for_another(digest):
    assert len({digest(value) for value in [*LEAVES, [], {}]}) == len(LEAVES) + 2


@WITHOUT_DEADLINE
@given(VALUES, VALUES)
def test_two_values_have_one_digest_only_where_they_are_equal(digest, one, other):
    assert digest(one) == digest(copy.deepcopy(one))
    assert (digest(one) == digest(other)) == (typed(one) == typed(other))


@WITHOUT_DEADLINE
@given(VALUES, VALUES, VALUES)
def test_where_a_value_ends_counts(digest, one, two, three):
    assert len({digest([one, two, three]), digest([[one, two], three]), digest([one, [two, three]])}) == 3


def test_equal_content_in_another_object_is_equal(digest):
    def value():
        return {"a": [1, 2.5, None, True], "b": (torch.ones(3), {"c"}), "p": Path("x/y"), "e": Colour.RED}

    assert digest(value()) == digest(value())


def test_the_order_of_a_dict_or_set_does_not_matter(digest):
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({1, 2, 3}) == digest({3, 2, 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1: "a"}, {"1": "a"}),
        (["ab", "c"], ["a", "bc"]),
        (["a", "bstr:c"], ["astr:b", "c"]),
        ([b"ab", b"c"], [b"a", b"bc"]),
        ([1, 2], [12]),
        ({"a": "b"}, {"b": "a"}),
        ({"a": {"b": 1}}, {"a": {}, "b": 1}),
        ({1}, [1]),
        ({1}, {2}),
        (0.1, 0.1 + 1e-17 * 2**3),
        (float("inf"), float("-inf")),
        (1j, 1.0),
        ([torch.zeros(2)], [torch.zeros(3)]),
        (torch.zeros(2), np.zeros(2, np.float32)),
        (np.zeros(3), np.ones(3)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (torch.float16, torch.float32),
        (torch.device("cpu"), torch.device("meta")),
        (Path("a"), "a"),
        (Colour.RED, Colour.GREEN),
        (Colour.RED, 1),
    ],
    ids=repr,
)
def test_other_content_has_another_digest(digest, one, other):
    assert digest(one) != digest(other)


def test_a_number_of_numpy_is_the_number(digest):
    assert digest(np.float64(0.5)) == digest(np.float32(0.5)) == digest(0.5)
    assert digest(np.int16(3)) == digest(3)
    assert digest(np.bool_(True)) == digest(True)


SHARED = """
{"text": ["a", b"b", None, -0.0, 10**30], 2: {"red", "green", "blue", 1, (2, 3)}, "t": torch.arange(5), "p": 1.5e-7}
"""


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process_gives_the_same_digest(digest, checkout, seed):
    code = f"import sys; sys.path.insert(0, {str(checkout)!r})\n"
    code += f"import torch; from chorus.comfy.content import digest; print(digest({SHARED.strip()}))"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(eval(SHARED.strip(), {"torch": torch}))


# -- objects ----------------------------------------------------------------------------------------------------


def test_an_object_of_the_host_is_its_class_and_attributes(digest):
    import comfy.clip_vision

    def output(value: float):
        made = comfy.clip_vision.Output()
        made["image_embeds"], made["mm_projected"] = torch.full((2, 3), value), None
        return made

    assert digest(output(1.0)) == digest([output(1.0)][0]) != digest(output(2.0))
    assert digest(output(1.0)) != digest(vars(output(1.0)))


class Patch:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def apply(self, args):
        return args


def cyclic() -> list:
    value: list = [1]
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("nan"), "NaN"),
        (complex(0, float("nan")), "NaN"),
        (np.float32("nan"), "NaN"),
        (Patch(strength=1.0), "Patch"),
        (Patch(strength=1.0).apply, "method"),
        (lambda x: x, "function"),
        (functools.partial(print, 1), "partial"),
        (torch.nn.Linear(2, 2), "Linear"),
        (Patch, "type"),
        (object(), "object"),
        (torch.Generator(), "Generator"),
        (iter([1]), "iterator"),
        (np.array([Patch()]), "array of Python objects"),
        (np.longdouble(1), "longdouble"),
        (cyclic(), "holds itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_may_hide_something_is_not_understood(content, value, why):
    with pytest.raises(content.NotUnderstood, match=why):
        content.digest(value)
    for holder in ([1, value], {"a": {"b": value}}, (value,)):
        with pytest.raises(content.NotUnderstood, match=why):
            content.digest(holder)


def test_a_function_or_a_module_of_the_host_is_not_understood_either(content):
    import comfy.model_sampling
    import comfy.samplers

    for value in (comfy.samplers.KSAMPLER, comfy.samplers.calc_cond_batch, comfy.model_sampling.ModelSamplingFlux()):
        with pytest.raises(content.NotUnderstood):
            content.digest(value)


def test_the_message_names_the_part(content):
    with pytest.raises(content.NotUnderstood, match=r"\.cond\[1\]\.hooks"):
        content.digest({"cond": [1, {"hooks": object()}]})
