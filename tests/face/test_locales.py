"""Every language says everything, and the nodes' texts are those of the nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tools.server import ComfyServer

CHECKOUT = Path(__file__).resolve().parents[2]
LOCALES = CHECKOUT / "locales"
LANGUAGES = ("de", "en", "es", "fr", "ja", "ko", "ru", "zh")
NODES = (
    "Chorus",
    "ChorusCacheLookup",
    "ChorusCacheStore",
    "ChorusSRDMask",
    "ChorusStage1Reuse",
    "ChorusStage3Refine",
    "TGAAPatch",
)


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def places(text: str) -> list[str]:
    return sorted(set(re.findall(r"\{(\w+)\}", text)))


def test_all_languages_are_there() -> None:
    assert sorted(folder.name for folder in LOCALES.iterdir()) == list(LANGUAGES)


@pytest.mark.parametrize("name", ["main", "settings"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_missing_and_none_is_empty(language: str, name: str) -> None:
    english, texts = dict(flat(read("en", name))), dict(flat(read(language, name)))
    assert sorted(texts) == sorted(english)
    for key, text in texts.items():
        assert text.strip(), f"{language} {key} is empty"
        assert places(text) == places(english[key]), f"{language} {key} has other places for values"
    translated = [key for key in texts if texts[key] != english[key]]
    assert language == "en" or len(translated) > 0.8 * len(texts)


def test_every_text_the_frontend_asks_for_exists() -> None:
    known = [key for key, _ in flat(read("en", "main")["chorus"])]
    asked = set()
    for file in (CHECKOUT / "web").rglob("*.js"):
        asked |= set(re.findall(r"""\bt\(["`]([^"`]+)["`]""", file.read_text(encoding="utf-8")))
    assert len(asked) > 60
    for key in asked:
        pattern = re.escape(re.sub(r"\$\{[^}]*\}", "*", key)).replace(r"\*", r"[\w.]+")
        assert any(re.fullmatch(pattern, text) for text in known), f"t({key!r}) has no text"


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_node_texts_are_those_of_the_nodes(language: str, comfy_server: ComfyServer) -> None:
    texts = read(language, "nodeDefs")
    assert sorted(texts) == sorted(NODES)
    for node in NODES:
        info = comfy_server.client().object_info(node)[node]
        inputs = [*info["input"].get("required", {}), *info["input"].get("optional", {})]
        assert sorted(texts[node]["inputs"]) == sorted(inputs), node
        assert sorted(texts[node]["outputs"]) == [str(slot) for slot in range(len(info["output_name"]))], node
        for key, text in flat(texts[node]):
            assert text.strip(), f"{language} {node} {key}"
            assert not set("{}|@") & set(text), f"{language} {node} {key}: the frontend reads that sign as its own"
