"""The demo's graph: the template, whatever its node ids, with other loaders."""

from __future__ import annotations

import pytest

from tools import demo_graph


@pytest.fixture
def template() -> demo_graph.Graph:
    return demo_graph.load_template()


def renamed(graph: demo_graph.Graph) -> demo_graph.Graph:
    """The graph with other node ids."""
    return {
        f"n{node_id}": node
        | {
            "inputs": {
                name: [f"n{value[0]}", value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            }
        }
        for node_id, node in graph.items()
    }


def test_node_ids_do_not_matter(template):
    plain, other = (demo_graph.build(graph, "a cat", 1) for graph in (template, renamed(template)))
    assert other.sampler == f"n{plain.sampler}"
    assert [node["class_type"] for node in other.nodes.values()] == [n["class_type"] for n in plain.nodes.values()]


def test_every_node_that_reads_the_prompt_gets_it(template):
    nodes = demo_graph.build(template, "a cat", 1).nodes

    def text(node_id: str, name: str) -> str:
        value = nodes[node_id]["inputs"][name]
        return text(value[0], "value") if isinstance(value, list) else value

    (lookup,) = (i for i, node in nodes.items() if node["class_type"] == "ChorusCacheLookup")
    encoders = [i for i, node in nodes.items() if node["class_type"] == "CLIPTextEncode"]
    assert text(lookup, "prompt") == "a cat"
    assert sorted(text(encoder, "text") for encoder in encoders) == ["", "a cat"]


def test_template_itself_is_left_alone(template):
    demo_graph.build(template, "a cat", 1)
    assert template == demo_graph.load_template()


def test_template_without_a_loader_is_named(template):
    del template[next(i for i, node in template.items() if node["class_type"] == "VAELoader")]
    with pytest.raises(demo_graph.TemplateFailure, match="0 nodes of type VAELoader"):
        demo_graph.build(template, "a cat", 1)


def test_missing_template_is_named(tmp_path):
    with pytest.raises(demo_graph.TemplateFailure, match=r"gone\.json"):
        demo_graph.load_template(tmp_path / "gone.json")
