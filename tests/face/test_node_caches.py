"""Both nodes tell the same truth about a run, under every node cache that the host offers.

The host keeps what a look-up answered while nothing in the graph asks for it anew, and some of its caches keep it for
earlier graphs too: by the time of a run the answer may be an old one. With `--cache-none` every look-up is made anew,
and the run may still refuse what it found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import opened
from .test_results import FIRST, FOUR_STEPS, SIMILAR, UNLIKE

if TYPE_CHECKING:
    from tools.server import ComfyServer

NODE_CACHES = {"default": [], "classic": ["--cache-classic"], "lru": ["--cache-lru", "50"], "none": ["--cache-none"]}
LOOKUP, STORE = "ChorusCacheLookup", "ChorusCacheStore"
OTHER_SEED = "the same prompt with another seed"


@pytest.fixture(scope="module", params=NODE_CACHES)
def node_cache(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(node_cache: str) -> Iterator[ComfyServer]:
    from tools.server import ComfyServer

    with ComfyServer(arguments=NODE_CACHES[node_cache]) as started:
        yield started


def agreed(face: Any) -> str:
    """What look-up and store both show of what became of the request; the store shows more."""
    lookup, store = (face.result(node).splitlines() for node in (LOOKUP, STORE))
    assert [line for line in lookup if line not in store] == []
    return "\n".join(lookup)


def run(face: Any, prompt: str, *, seed: int, cache: str) -> str:
    face.load(FOUR_STEPS, prompt, cache=cache, seed=seed)
    face.run()
    return agreed(face)


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])
def test_look_up_and_store_show_what_the_run_reports(server, node_cache, browser, vue_nodes) -> None:
    cache = f"reports vue {vue_nodes}"
    with opened(server, browser, vue_nodes=vue_nodes) as face:
        shown = run(face, FIRST, seed=1, cache=cache)
        assert "Miss" in shown and "nothing to compare with yet" in shown
        shown = run(face, UNLIKE, seed=1, cache=cache)
        assert "Miss" in shown and "is below" in shown
        shown = run(face, SIMILAR, seed=1, cache=cache)
        assert "Hit" in shown and "of the picture differs" in shown
        shown = run(face, SIMILAR, seed=1, cache=cache)
        assert ("Identical" if node_cache == "none" else "Hit") in shown
        shown = run(face, FIRST, seed=2, cache=cache)
        assert "Miss" in shown
        # A tab that is opened again shows what its last run reported, not what its look-up answered before.
        face.load(FOUR_STEPS, UNLIKE, cache="another tab")
        face.page.evaluate("() => app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
        face.page.wait_for_function("(shown) => document.body.innerText.includes(shown)", arg=shown.splitlines()[-1])
        assert agreed(face) == shown


def test_another_seed_is_named_as_the_reason_however_old_the_look_up_is(server, node_cache, browser) -> None:
    with opened(server, browser) as face:
        run(face, FIRST, seed=1, cache="seeds")
        for seed in (2, 3):
            shown = run(face, FIRST, seed=seed, cache="seeds")
            assert "Miss" in shown and OTHER_SEED in shown
        run(face, UNLIKE, seed=1, cache="seeds")
        shown = run(face, FIRST, seed=4, cache="seeds")
        assert "Miss" in shown and OTHER_SEED in shown
