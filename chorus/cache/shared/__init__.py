"""A cache that many machines share: PostgreSQL for what is known, an object store for the tensors.

docs/shared_cache.md says how to set one up and what it promises.
"""

from .cache import SharedCache
from .settings import Settings, from_environment

__all__ = ["Settings", "SharedCache", "from_environment"]
