"""Content digests: what changes them, and what must not."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

LARGE = (1 << 20) + 4096 + 5  # bytes: beyond the limit for the cryptographic hash, and no multiple of eight
WITHOUT_DEADLINE = settings(deadline=None, max_examples=40)


@pytest.fixture
def tensor_digest(digest_module):
    return digest_module.tensor_digest


@pytest.fixture
def digest(digest_module):
    return digest_module.digest


# -- tensors ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contents() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "small": torch.randint(0, 256, (1001,), dtype=torch.uint8, generator=generator),
        "large": torch.randint(0, 256, (LARGE,), dtype=torch.uint8, generator=generator),
        "several passes": torch.randint(0, 256, ((1 << 25) + 24,), dtype=torch.uint8, generator=generator),
    }


@pytest.mark.parametrize("size", ["small", "large"])
def test_any_flipped_bit_changes_the_digest(digest_module, contents, size):
    content = contents[size]
    before = digest_module.tensor_digest(content)

    @WITHOUT_DEADLINE
    @given(st.integers(0, len(content) - 1), st.integers(0, 7))
    def flip(byte, bit):
        content[byte] ^= 1 << bit
        try:
            assert digest_module.tensor_digest(content) != before
        finally:
            content[byte] ^= 1 << bit

    flip()
    assert digest_module.tensor_digest(content) == before


@pytest.mark.parametrize("byte", [0, 7, (1 << 25) - 1, 1 << 25, (1 << 25) + 23])
def test_a_bit_flipped_at_the_edge_of_a_pass_counts(tensor_digest, contents, byte):
    content = contents["several passes"]
    before = tensor_digest(content)
    content[byte] ^= 128
    after = tensor_digest(content)
    content[byte] ^= 128
    assert after != before


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
    for view in (content.T, content[:, ::2], content[1:]):
        assert tensor_digest(view) == tensor_digest(view.clone())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8])
@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_large_view_from_any_position_has_the_digest_of_its_copy(tensor_digest, dtype, start):
    view = torch.arange(LARGE, dtype=torch.int32).to(dtype)[start:]
    assert tensor_digest(view) == tensor_digest(view.clone())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.bool, torch.float64])
@pytest.mark.parametrize("size", [17, LARGE])
def test_every_type_of_weight_has_a_digest(tensor_digest, dtype, size):
    zeros = torch.zeros(size).to(dtype)
    other = zeros.clone()
    other[size // 2] = 1
    assert tensor_digest(zeros) != tensor_digest(other)


def test_a_number_has_a_digest(tensor_digest):
    assert tensor_digest(torch.tensor(1.0)) != tensor_digest(torch.tensor(2.0))


# -- anything ---------------------------------------------------------------------------------------------------


class Patch:
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def apply(self, args):
        return args


def scale_by(factor):
    return lambda x: x * factor


def scale_by_default(factor):
    return lambda x, factor=factor: x * factor


def test_equal_content_on_another_object_is_equal(digest):
    def value():
        return {"a": [1, 2.5, None, True], "b": (torch.ones(3), {"c"}), "p": Patch(strength=1.0, at=torch.zeros(2))}

    assert digest(value()) == digest(value())


def test_the_order_of_a_dict_does_not_matter(digest):
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({1, 2, 3}) == digest({3, 2, 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([1, 2], [2, 1]),
        ([1, [2]], [[1], 2]),
        (1, 1.0),
        (1, True),
        ("1", 1),
        (None, "None"),
        (0.1, 0.1 + 1e-17 * 2**3),
        ([torch.zeros(2)], [torch.zeros(3)]),
        (b"a", "a"),
    ],
    ids=repr,
)
def test_other_content_has_another_digest(digest, one, other):
    assert digest(one) != digest(other)


def test_functions_that_close_over_other_values_differ(digest):
    assert digest(scale_by(1.0)) == digest(scale_by(1.0))
    assert digest(scale_by(1.0)) != digest(scale_by(2.0))
    assert digest(scale_by(torch.zeros(2))) != digest(scale_by(torch.ones(2)))


def test_functions_with_other_defaults_differ(digest):
    assert digest(scale_by_default(1.0)) == digest(scale_by_default(1.0))
    assert digest(scale_by_default(1.0)) != digest(scale_by_default(2.0))


def test_partial_functions_with_other_arguments_differ(digest):
    def partial(*args, **kwargs):
        return functools.partial(scale_by, *args, **kwargs)

    assert digest(partial(1.0)) == digest(partial(1.0))
    assert digest(partial(1.0)) != digest(partial(2.0))
    assert digest(partial(factor=1.0)) != digest(partial(factor=2.0))


def test_arrays_and_types_of_numbers_differ_by_content(digest):
    import numpy as np

    assert digest(np.zeros(3)) == digest(np.zeros(3))
    assert digest(np.zeros(3)) != digest(np.ones(3))
    assert digest(torch.float16) != digest(torch.float32)


def test_objects_differ_by_class_and_attributes(digest):
    class Other(Patch):
        pass

    assert digest(Patch(strength=1.0)) != digest(Patch(strength=2.0))
    assert digest(Patch(strength=1.0)) != digest(Other(strength=1.0))


def test_bound_methods_differ_by_their_object(digest):
    assert digest(Patch(strength=1.0).apply) == digest(Patch(strength=1.0).apply)
    assert digest(Patch(strength=1.0).apply) != digest(Patch(strength=2.0).apply)


def test_objects_that_refer_to_each_other_come_to_an_end(digest):
    one, other = Patch(strength=1.0), Patch(strength=1.0)
    one.partner, other.partner = other, one
    changed = Patch(strength=2.0, partner=one)
    assert digest(one) == digest(other) != digest(changed)


def test_a_tensor_without_content_counts_by_its_shape(digest_module):
    one, other = (torch.empty(shape, device="meta") for shape in ((2, 3), (3, 2)))
    assert digest_module.tensor_digest(one) != digest_module.tensor_digest(other)
