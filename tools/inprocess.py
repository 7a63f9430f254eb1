"""ComfyUI inside this process, for tests and benchmarks that look at models and tensors."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import importlib
import logging
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from . import base_directory, comfyui
from .client import ExecutionFailed, ExecutionInterrupted, Prompt, rejection

# How the host keeps node outputs: by default, or under --cache-classic, --cache-lru or --cache-none.
NodeCache = Literal["default", "classic", "lru", "none"]
NODE_CACHES: tuple[NodeCache, ...] = get_args(NodeCache)
LRU_NODES = 16  # about one graph of the tests, so that a second graph of other nodes makes the host drop outputs


class HostFailure(RuntimeError):
    """ComfyUI could not be started in this process, or a custom node did not load."""


class ComfyHost:
    """A ComfyUI booted in this process by `boot`, which can run graphs without a server.

    Attributes:
        root: ComfyUI's folder.
        base: the base directory.
        pack: this pack's top package, loaded the way ComfyUI does.
    """

    def __init__(
        self, root: Path, base: Path, loop: asyncio.AbstractEventLoop, node_cache: NodeCache = "default"
    ) -> None:
        self.root = root
        self.base = base
        self._loop = loop
        self._execution = importlib.import_module("execution")
        self._executors: dict[NodeCache, Any] = {}
        self._made: dict[NodeCache, dict[str, Any]] = {}
        self._kind: NodeCache = node_cache
        self._executor = self._executor_of(node_cache)

    @contextlib.contextmanager
    def node_cache(self, kind: NodeCache) -> Iterator[None]:
        """Run the graphs of this block under another kind of node cache.

        Every kind has an executor of its own, whose outputs stay from one block to the next.
        """
        before = self._kind
        self._kind, self._executor = kind, self._executor_of(kind)
        try:
            yield
        finally:
            self._kind, self._executor = before, self._executor_of(before)

    def _executor_of(self, kind: NodeCache) -> Any:
        """The executor of a kind, made as `main.prompt_worker` makes it."""
        if kind not in self._executors:
            total = importlib.import_module("comfy.model_management").total_ram / 1024.0  # GB
            by_default = kind == "default"
            types = self._execution.CacheType
            self._executors[kind] = self._execution.PromptExecutor(
                importlib.import_module("server").PromptServer.instance,
                cache_type={
                    "default": types.RAM_PRESSURE,
                    "classic": types.CLASSIC,
                    "lru": types.LRU,
                    "none": types.NONE,
                }[kind],
                cache_args={
                    "lru": LRU_NODES if kind == "lru" else 0,
                    "ram": min(10.0, max(2.0, total * 0.10)) if by_default else 0,
                    "ram_inactive": min(128.0, total) if by_default else 0,
                },
            )
            self._keep_outputs(kind)
        return self._executors[kind]

    def _keep_outputs(self, kind: NodeCache) -> None:
        """Let `output` read what the last graph's nodes put out.

        Without a node cache the host keeps none of it, and by default it drops outputs when memory is short.
        """
        made = self._made[kind] = {}
        outputs = self._executors[kind].caches.outputs
        store = outputs.set

        async def keep(node_id: str, entry: Any) -> None:
            made[node_id] = entry
            await store(node_id, entry)

        outputs.set = keep

    @property
    def pack(self) -> ModuleType:
        """This pack's top package. Raises `HostFailure` when it was not loaded."""
        return self.custom_node(base_directory.PACK_FOLDER)

    def module(self, name: str) -> ModuleType:
        """Return the module of this pack that the host runs: `module("chorus.reuse.plan")`.

        It is another copy than a bare `import chorus.reuse.plan` gives.
        """
        return importlib.import_module(f"{self.pack.__name__}.{name}")

    def custom_node(self, folder: str) -> ModuleType:
        """Return the package loaded from `custom_nodes/FOLDER`. Raises `HostFailure`."""
        name = _module_name(self.base / "custom_nodes" / folder)
        if name not in sys.modules:
            raise HostFailure(f"no custom node was loaded from {self.base / 'custom_nodes' / folder}")
        return sys.modules[name]

    def execute(self, prompt: Prompt) -> dict[str, Any]:
        """Run a graph in API form as the server would and return an item like those of its history.

        Raises:
            PromptRejected, ExecutionFailed, ExecutionInterrupted.
        """
        prompt = copy.deepcopy(prompt)  # the host notes fingerprints in it; over the network every one is new
        prompt = importlib.import_module("server").PromptServer.instance.trigger_on_prompt({"prompt": prompt})["prompt"]
        prompt_id = str(uuid.uuid4())
        valid, problem, outputs, node_errors = self._loop.run_until_complete(
            self._execution.validate_prompt(prompt_id, prompt, None)
        )
        if not valid:
            raise rejection(problem, node_errors)
        self._made[self._kind].clear()
        self._executor.execute(prompt, prompt_id, {}, outputs)
        messages = self._executor.status_messages
        for kind, data in messages:
            if kind == "execution_error":
                raise ExecutionFailed(data)
            if kind == "execution_interrupted":
                raise ExecutionInterrupted(f"the graph was interrupted at node {data['node_id']}")
        return {
            **self._executor.history_result,
            "status": {"status_str": "success", "completed": True, "messages": messages},
        }

    def output(self, node_id: str) -> Sequence[Any]:
        """Return what a node of the last graph put out, one list of values for each output socket."""
        entry = self._made[self._kind].get(node_id)
        if entry is None:
            entry = self._loop.run_until_complete(self._executor.caches.outputs.get(node_id))
        if entry is None:
            raise HostFailure(f"node {node_id} has no output in the last graph: it did not run")
        outputs: Sequence[Any] = entry.outputs
        return outputs

    def forget_outputs(self) -> None:
        """Drop all node outputs under the present kind of node cache, so that the next graph runs every node."""
        self._executor.reset()
        self._keep_outputs(self._kind)


def boot(
    base: Path,
    *,
    custom_nodes: Mapping[str, Path] = base_directory.CUSTOM_NODES,
    models: Mapping[str, Path] = base_directory.MODELS,
    arguments: Sequence[str] = ("--cpu",),
    node_cache: NodeCache = "default",
) -> ComfyHost:
    """Start ComfyUI in this process; possible once, as its settings are global.

    Args:
        base: base directory, made if missing.
        custom_nodes, models: see `base_directory.prepare`.
        arguments: command line arguments for ComfyUI.
        node_cache: how node outputs are kept between graphs, unless `ComfyHost.node_cache` says otherwise.

    Raises:
        HostFailure: another module hides one of ComfyUI's, or a custom node did not load.
    """
    base = base.absolute()
    root = comfyui.find()
    base_directory.prepare(base, custom_nodes, models, root)
    sys.path.insert(0, str(root))
    argv = ["main.py", "--base-directory", str(base), "--disable-api-nodes"]
    argv += ["--database-url", "sqlite:///:memory:", *arguments]
    with _argv(argv):
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # parses sys.argv
    # Not import statements: to a type checker `nodes` is the folder of this checkout.
    nodes = importlib.import_module("nodes")
    server = importlib.import_module("server")
    for module in (nodes, server):
        if not Path(str(module.__file__)).is_relative_to(root):
            raise HostFailure(
                f"{module.__file__} hides ComfyUI's module '{module.__name__}': keep its folder off sys.path"
            )
    loop = asyncio.new_event_loop()
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    core_nodes = set(nodes.NODE_CLASS_MAPPINGS)
    for name in custom_nodes:
        folder = base / "custom_nodes" / name
        if not folder.is_dir():
            continue
        with _warnings() as lines:
            loaded = loop.run_until_complete(nodes.load_custom_node(str(folder), core_nodes))
        if not loaded:
            raise HostFailure(f"custom node '{name}' did not load:\n" + "\n".join(lines))
    gc.collect()
    gc.freeze()  # The host collects garbage after each graph; what is loaded by now stays and need not be looked at.
    return ComfyHost(root, base, loop, node_cache)


def _module_name(folder: Path) -> str:
    # As nodes.load_custom_node names a package made from a folder.
    return str(folder).replace(".", "_x_")


@contextlib.contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what is logged; ComfyUI reports a failed import only there."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)
