"""The routes below /chorus/v1: what the panel and the nodes' results ask for. See docs/routes.md."""

from .routes import register

__all__ = ["register"]
