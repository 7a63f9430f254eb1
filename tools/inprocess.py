"""ComfyUI inside this process, for tests and benchmarks that look at models and tensors."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
import logging
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from . import base_directory, comfyui
from .client import ExecutionFailed, ExecutionInterrupted, Prompt, rejection


class HostFailure(RuntimeError):
    """ComfyUI could not be started in this process, or a custom node did not load."""


class ComfyHost:
    """A ComfyUI booted in this process by `boot`, which can run graphs without a server.

    Attributes:
        root: ComfyUI's folder.
        base: the base directory.
        pack: this pack's top package, loaded the way ComfyUI does.
    """

    def __init__(self, root: Path, base: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.root = root
        self.base = base
        self._loop = loop
        self._execution = importlib.import_module("execution")
        self._executor = self._execution.PromptExecutor(
            importlib.import_module("server").PromptServer.instance,
            cache_type=self._execution.CacheType.CLASSIC,
            cache_args={"lru": 0, "ram": 0, "ram_inactive": 0},
        )

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
        prompt_id = str(uuid.uuid4())
        valid, problem, outputs, node_errors = self._loop.run_until_complete(
            self._execution.validate_prompt(prompt_id, prompt, None)
        )
        if not valid:
            raise rejection(problem, node_errors)
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
        entry = self._loop.run_until_complete(self._executor.caches.outputs.get(node_id))
        if entry is None:
            raise HostFailure(f"node {node_id} has no output in the last graph: it did not run")
        outputs: Sequence[Any] = entry.outputs
        return outputs

    def forget_outputs(self) -> None:
        """Drop all node outputs, so that the next graph runs every node."""
        self._executor.reset()


def boot(
    base: Path,
    *,
    custom_nodes: Mapping[str, Path] = base_directory.CUSTOM_NODES,
    models: Mapping[str, Path] = base_directory.MODELS,
    arguments: Sequence[str] = ("--cpu",),
) -> ComfyHost:
    """Start ComfyUI in this process; possible once, as its settings are global.

    Args:
        base: base directory, made if missing.
        custom_nodes, models: see `base_directory.prepare`.
        arguments: command line arguments for ComfyUI.

    Raises:
        HostFailure: another module hides one of ComfyUI's, or a custom node did not load.
    """
    base = base.absolute()
    base_directory.prepare(base, custom_nodes, models)
    root = comfyui.find()
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
    return ComfyHost(root, base, loop)


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
