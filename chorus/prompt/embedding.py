"""The ways from a prompt to its vector: of a text tower, or pooled from the graph's own text encoding."""

from .open_clip_text import OpenClipEmbedder
from .pooling import pool_encoding
from .vector import PromptVector

__all__ = ["OpenClipEmbedder", "PromptVector", "pool_encoding"]
