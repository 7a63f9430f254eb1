"""Spaces, and what may become an entry."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chorus.cache import CacheUnavailable, EntryDamaged, EntryMissing, EntryTooLarge, VectorLengthMismatch

from .sample import SPACE, new_entry, unit


def test_equal_spaces_have_equal_keys_and_no_differences():
    assert replace(SPACE).key() == SPACE.key()
    assert SPACE.differences(replace(SPACE)) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "weights-b"}, "other weights"),
        ({"patches": "lora"}, "other LoRAs or model patches, or other settings of them"),
        ({"latent_format": "Wan22"}, "other latent format (Wan21 here, Wan22 there)"),
        ({"shape": (1, 16, 8, 12, 12)}, "other shape (1×4×2×4×4 here, 1×16×8×12×12 there)"),
        ({"task": "i2v:abc"}, "other task (t2v here, i2v there)"),
        ({"prediction": "eps"}, "other prediction type (flow here, eps there)"),
    ],
)
def test_each_field_of_a_space_separates_and_is_named(change, words):
    other = replace(SPACE, **change)
    assert other.key() != SPACE.key()
    assert [str(one) for one in SPACE.differences(other)] == [words]


def test_another_image_is_told_from_another_task():
    here, there = replace(SPACE, task="i2v:abc"), replace(SPACE, task="i2v:def")
    assert [str(one) for one in here.differences(there)] == ["other start image, control video, audio or reference"]
    (latent,) = replace(SPACE, task="v2v:a").differences(replace(SPACE, task="v2v:b"))
    assert str(latent) == "other start latent"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector": np.ones(4, np.float32)}, "norm 1"),
        ({"vector": np.full(4, np.nan, np.float32)}, "norm 1"),
        ({"vector": np.array([1.0, 0.0])}, "float32"),
        ({"vector": unit([1, 0]).reshape(1, 2)}, "shape"),
        ({"sigmas": (1.0, float("nan"))}, "sigmas"),
        ({"seconds": -1.0}, "seconds"),
        ({"settings": {"model": object()}}, "settings"),
        ({"settings": {"cfg": float("inf")}}, "settings"),
        ({"request": ""}, "request"),
        ({"tensors": {}}, "tensor"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_name(change, message):
    with pytest.raises(ValueError, match=message):
        new_entry(1, **change)


@pytest.mark.parametrize(
    "error",
    [
        EntryMissing("ab"),
        EntryDamaged("ab", Path("x"), "flipped"),
        EntryTooLarge(2, 1),
        VectorLengthMismatch("open_clip", 512, 768),
        CacheUnavailable(Path("x"), "locked", "Wait."),
    ],
)
def test_errors_cross_process_boundaries_with_their_text(error):
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
