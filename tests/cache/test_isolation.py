"""No search ever leaves its space or its embedder, whatever is stored and asked."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chorus.cache import LocalCache

from .sample import SPACE, new_entry, unit

SPACES = [
    SPACE,
    replace(SPACE, patches="lora@0.5"),
    replace(SPACE, task="i2v:image"),
    replace(SPACE, shape=(1, 16, 8, 12, 12)),
]
EMBEDDERS = ["open_clip", "conditioning:umt5"]

# Few distinct values, so that equal vectors and equal scores are common.
vectors = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), min_size=3, max_size=3).filter(any).map(unit)
places = st.tuples(st.sampled_from(SPACES), st.sampled_from(EMBEDDERS))
puts = st.tuples(st.just("put"), places, vectors, st.booleans())
forgets = st.tuples(st.just("forget"), st.integers(0, 20))
searches = st.tuples(st.just("search"), places, vectors, st.integers(1, 5))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.one_of(puts, puts, searches, forgets), min_size=4, max_size=14))
def test_search_answers_from_its_space_and_embedder_only_and_best_first(steps):
    with tempfile.TemporaryDirectory() as folder:
        cache = LocalCache(Path(folder))
        kept = {}  # id → (space, embedder, vector, whether it is a source, number)
        for number, (step, *values) in enumerate(steps):
            if step == "put":
                (space, embedder), vector, is_source = values
                new = new_entry(number, kilobytes=1, space=space, embedder=embedder, vector=vector, is_source=is_source)
                kept[cache.put(new).id] = space, embedder, vector, is_source, number
            elif step == "forget" and kept:
                entry_id = list(kept)[values[0] % len(kept)]
                cache.forget(entry_id)
                del kept[entry_id]
            elif step == "search":
                (space, embedder), query, k = values
                for search, same in ((cache.search, True), (cache.search_elsewhere, False)):
                    assert answer(search(query, embedder, space, k)) == best(kept, query, embedder, space, k, same)
        cache.close()


def answer(matches):
    return [(match.entry.id, round(match.score, 5)) for match in matches]


def best(kept, query, embedder, space, k, same):
    """By definition: every source scored, sorted by score and then the newest."""
    found = [
        (float(np.dot(vector.astype(float), query.astype(float))), number, entry_id)
        for entry_id, (in_space, of_embedder, vector, is_source, number) in kept.items()
        if is_source and of_embedder == embedder and (in_space == space) == same
    ]
    ranked = sorted(found, key=lambda one: (-round(one[0], 9), -one[1]))[:k]
    return [(entry_id, round(min(1.0, max(-1.0, score)), 5)) for score, _, entry_id in ranked]


def test_the_names_of_inputs_only_tell_what_differs():
    """Entries from before inputs were named have none, and still serve."""
    space = replace(SPACE, task="i2v:0123;audio=ab,start_image=cd")
    older, other = (replace(space, task=task) for task in ("i2v:0123", "i2v:4567;audio=ef,start_image=cd"))
    assert space == older and space.key() == older.key() and hash(space) == hash(older)
    assert space.differing(older) == () == space.differences(older)
    assert space != other and space.key() != other.key() and space.differing(other) == ("task",)
    assert [said.code for said in space.differences(other)] == ["differs.audio"]
    assert [said.code for said in older.differences(other)] == ["differs.image"]
