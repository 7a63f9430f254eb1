"""A tiny Wan that follows prompts: made, trained, sampled and judged without any download.

A plain package for tests and command lines, and, put into `custom_nodes/`, a pack of two test-only nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import SmallWanExtension


def comfy_entrypoint() -> SmallWanExtension:
    """ComfyUI's V3 entry point; the host is imported only here."""
    from .nodes import SmallWanExtension

    return SmallWanExtension()
