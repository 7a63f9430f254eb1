"""The host's own signature of a node: classes, widget values and links of all its ancestors, with files by content.

It knows every parameter of every patch on a model without looking into Python objects, and running state such as a
patch's moving average does not count. It is computed as the host's node cache does (comfy_execution/caching.py). A
node that says that it changes with every run has none. Of this pack's own nodes only what affects the result counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .content import NotUnderstood, digest
from .files import file_digests, named_files

# Inputs of the look-up nodes that do not count: they say whether the cache is searched, which one, and with which
# threshold. `Identity` adds the threshold where it matters.
LOOKUPS = {"ChorusCacheLookup", "Chorus"}
_OF_THE_CACHE = {"mode", "cache_name", "threshold"}
_OWN = LOOKUPS | {
    "ChorusSRDMask",
    "ChorusStage1Reuse",
    "TGAAPatch",
    "ChorusStage3Refine",
    "ChorusCacheStore",
}
PROMPT = "the prompt"  # stands for the node that encodes the request's prompt

Link = tuple[str, int]


class RunningNode:
    """The node that the host executes now, in its graph.

    Raises NotUnderstood where nothing tells: outside the host's executor.
    """

    def __init__(self) -> None:
        from comfy_execution.progress import get_progress_state
        from comfy_execution.utils import get_executing_context

        context, state = get_executing_context(), get_progress_state()
        if context is None or state.prompt_id != context.prompt_id or not state.dynprompt.has_node(context.node_id):
            raise NotUnderstood("sampling was not started by a node of ComfyUI's graph")
        self.prompt_id: str = context.prompt_id
        self.node_id: str = context.node_id
        self.list_index: int | None = context.list_index
        self.graph: Any = state.dynprompt

    def inputs(self, node_id: str | None = None) -> Mapping[str, Any]:
        """The widget values and links of a node, of this one unless named."""
        inputs: Mapping[str, Any] = self.graph.get_node(node_id or self.node_id)["inputs"]
        return inputs

    def class_of(self, node_id: str) -> str:
        return str(self.graph.get_node(node_id)["class_type"])

    def link(self, name: str, node_id: str | None = None) -> Link | None:
        """What is connected to an input, None without a link."""
        from comfy_execution.graph_utils import is_link

        value: Any = self.inputs(node_id).get(name)
        return (value[0], int(value[1])) if is_link(value) else None

    def holds(self, class_type: str) -> bool:
        """Whether the graph has a node of this class."""
        return any(self.class_of(node_id) == class_type for node_id in self.graph.all_node_ids())

    def signature(self) -> str:
        """Hex digest of this node and its ancestors, and of its place in a list. Raises NotUnderstood."""
        return digest([self._described([(self.node_id, -1)], frozenset()), self.list_index])

    def signature_of(self, links: Collection[Link], prompt_nodes: Collection[str]) -> str:
        """Hex digest of what gives these links, where `prompt_nodes` stand for the prompt. Raises NotUnderstood."""
        return digest([self._described(sorted(links), frozenset(prompt_nodes)), self.list_index])

    def _described(self, links: Collection[Link], prompt_nodes: frozenset[str]) -> list[Any]:
        order: dict[str, int] = {}
        nodes: list[Any] = []

        def visit(node_id: str) -> int:
            if node_id in order:
                return order[node_id]
            number = order[node_id] = len(order)
            nodes.append(None)
            if node_id in prompt_nodes:
                nodes[number] = PROMPT
                return number
            class_type, inputs = self.class_of(node_id), self.inputs(node_id)
            fingerprint = None if class_type in _OWN else self.fingerprint(node_id)
            described: list[Any] = [class_type, fingerprint, self._own_id(node_id)]
            for name in sorted(inputs):
                if class_type in LOOKUPS and name in _OF_THE_CACHE:
                    continue
                if link := self.link(name, node_id):
                    described.append((name, "link", visit(link[0]), link[1]))
                else:
                    # A node that fingerprints what it reads is executed again when a file changes; any other keeps
                    # what it has read.
                    described.append((name, inputs[name], _files(inputs[name], rereads=bool(fingerprint))))
            nodes[number] = described
            return number

        roots = [(visit(node_id), socket) for node_id, socket in links]
        return [roots, nodes]

    def _own_id(self, node_id: str) -> str | None:
        """The id of a node whose output may depend on it. Raises NotUnderstood for one that is new with every run."""
        import nodes

        definition: Any = vars(nodes)["NODE_CLASS_MAPPINGS"][self.class_of(node_id)]
        if getattr(definition, "NOT_IDEMPOTENT", False):
            raise NotUnderstood(f"node {node_id} ({self.class_of(node_id)}) gives something else each time")
        return node_id if "UNIQUE_ID" in definition.INPUT_TYPES().get("hidden", {}).values() else None

    def fingerprint(self, node_id: str) -> Any:
        """The node's own fingerprint of its outputs, as the host has asked for it; None if the node has none."""
        from execution import IsChangedCache

        asked = IsChangedCache(self.prompt_id, self.graph, None).get(node_id)
        try:
            asked.send(None)
        except StopIteration as answered:
            return answered.value
        asked.close()
        raise NotUnderstood(f"node {node_id} ({self.class_of(node_id)}) takes time to tell whether it changed")


def _files(value: Any, rereads: bool) -> list[str]:
    """Digests of the files that a widget's value names, also inside a list or a mapping. Raises NotUnderstood.

    rereads: whether the node is sure to have read their present content.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [digest for inner in value for digest in _files(inner, rereads)]
    if not isinstance(value, str):
        return []
    try:
        files = named_files(value)
        for path in files:
            if not rereads and not file_digests().is_as_loaded(path):
                raise NotUnderstood(f"{path} may have changed since it was loaded")
        return [file_digests().of(path) for path in files]
    except OSError as error:
        raise NotUnderstood(f"a file cannot be read: {error}") from error
