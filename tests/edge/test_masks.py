"""The SRD masks of a plan, and what people see of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

SHAPE = (1, 16, 3, 9, 12)
GRID = (3, 5, 6)
WORDS = 4


@pytest.fixture(scope="module")
def masks(pack_module):
    return pack_module("chorus.comfy.masks")


@pytest.fixture(scope="module")
def made(masks, pack_module):
    """`made(plan, …)`: what `with_regions` put on the plan: its masks, or a note why there are none."""
    selective = pack_module("chorus.comfy.techniques.selective")

    def of(plan, *settings):
        with_masks = masks.with_regions(plan, *settings)
        found = with_masks.stages[selective.NAME]
        assert selective.regions_of(with_masks) is found.regions
        return found

    return of


def words(*numbers: int) -> torch.Tensor:
    """[L, 32] encodings, one direction a word."""
    return torch.eye(32)[list(numbers)]


@pytest.fixture
def plan_of(pack_module):
    import numpy as np

    plans, entries, messages = map(pack_module, ("chorus.reuse.plan", "chorus.cache", "chorus.messages"))

    def make(target=None, source=None, attention=None, hit=True):
        entry = SimpleNamespace(id="e", tensor_names=(), prompt="a")
        space = entries.Space("w", "", "Wan21", SHAPE, "t2v", "flow")
        return plans.Plan(
            id="p",
            cache_name="default",
            reads=True,
            writes=True,
            prompt="b",
            embedder="conditioning:32",
            vector=np.ones(1, np.float32),
            space=space,
            experts=(("w", "", ()),),
            source=plans.Source(entry, 0.9, source, attention) if hit else None,
            score=0.9 if hit else -1.0,
            explanation=messages.say("miss.empty"),
            tokens=target,
        )

    return make


@pytest.fixture
def looking(plan_of):
    """A plan whose second word is another; it looked at the top left corner."""
    attention = torch.full((WORDS, *GRID), 0.1)
    attention[1, :, :2, :3] = 0.9
    return plan_of(words(0, 9, 2, 3), words(0, 1, 2, 3), attention)


def test_attention_points_the_changed_word_at_its_place(made, looking):
    regions = made(looking, "attention", None, 0, 0, "none").regions
    expected = torch.zeros(GRID, dtype=torch.bool)
    expected[:, :2, :3] = True
    assert torch.equal(regions.base, expected)
    assert torch.equal(regions.base, regions.edit) and torch.equal(regions.edit, regions.visible)


def test_radii_grow_the_edit_and_then_the_visible_mask(made, looking):
    regions = made(looking, "attention", None, 1, 2, "none").regions
    assert regions.edit[0].nonzero().amax(0).tolist() == [2, 3]
    assert regions.visible[0].nonzero().amax(0).tolist() == [4, 5]


def test_a_plan_is_not_changed_but_made_anew(masks, looking):
    again = masks.with_regions(looking, "attention", None, 1, 1, "none")
    assert not looking.stages and again is not looking
    assert again.stage_seconds > looking.stage_seconds


def test_a_miss_has_no_masks(made, plan_of):
    found = made(plan_of(hit=False), "attention", None, 1, 1, "none")
    assert found.regions is None and found.note is None


def test_the_same_words_leave_nothing_to_edit(made, plan_of):
    found = made(plan_of(words(0, 1), words(0, 1), torch.rand(2, *GRID)), "attention", None, 2, 2, "none")
    assert found.regions.empty and found.note.code == "note.same_words"


@pytest.mark.parametrize(
    ("target", "source", "attention", "why"),
    [
        (None, words(0), torch.ones(1, *GRID), "note.no_text"),
        (words(0), None, None, "note.no_attention"),
        (words(0), words(0), None, "note.no_attention"),
        (words(0, 1), words(0), torch.ones(1, *GRID), "note.only_new"),
    ],
    ids=["no target words", "no source words", "no maps", "only new words"],
)
def test_where_attention_cannot_tell_a_note_says_why(made, plan_of, target, source, attention, why):
    found = made(plan_of(target, source, attention), "attention", None, 1, 1, "none")
    assert found.regions is None and found.note.code == why


def test_a_mask_serves_without_any_words(made, plan_of):
    mask = torch.zeros(1, 90, 120)
    mask[0, 40:50, 60:70] = 1.0
    regions = made(plan_of(), "mask", mask, 0, 0, "none").regions
    assert regions.base.any() and torch.equal(regions.base, regions.base[:1].expand(GRID))


@pytest.mark.parametrize("hit", [True, False], ids=["hit", "miss"])
@pytest.mark.parametrize(
    ("way", "why"),
    [("mask", "connect a MASK"), ("magic", "magic"), ("segment anything", "models/sams")],
)
def test_a_way_that_lacks_what_it_needs_says_so_on_every_run(masks, plan_of, way, why, hit):
    with pytest.raises(ValueError, match=why):
        masks.with_regions(plan_of(hit=hit), way, None, 1, 1, "none")


# -- what people see --------------------------------------------------------------------------------------------


def test_without_masks_the_video_is_shown_as_it_is(masks, plan_of):
    frames = torch.rand(5, 36, 48, 3)
    edit, overlay = masks.frame_masks(plan_of(), frames)
    assert edit.shape == (5, 36, 48) and not edit.any()
    assert overlay is frames


def test_the_edit_mask_is_shown_at_the_size_of_the_frames(masks, looking):
    plan = masks.with_regions(looking, "attention", None, 0, 1, "none")
    frames = torch.full((6, 50, 60, 3), 0.5)
    edit, overlay = masks.frame_masks(plan, frames)
    assert edit.shape == frames.shape[:3] and overlay.shape == frames.shape
    assert edit[:, :20, :30].all() and not edit[:, 20:].any() and not edit[:, :, 30:].any()
    assert bool((overlay >= 0).all()) and bool((overlay <= 1).all())
    tinted, context, unseen = overlay[0, 5, 5], overlay[0, 25, 35], overlay[0, 45, 55]
    assert tinted[0] > tinted[2]
    assert torch.allclose(context, torch.full((3,), 0.5))
    assert torch.allclose(unseen, torch.full((3,), 0.5 * 0.35))
