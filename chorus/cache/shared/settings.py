"""Where the shared cache is, from the environment alone, and how to speak of it without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from ...messages import say
from ..errors import CacheUnavailable

URL, BLOBS, TENANT, LOCAL_GB = "CHORUS_CACHE_URL", "CHORUS_CACHE_BLOBS", "CHORUS_CACHE_TENANT", "CHORUS_CACHE_LOCAL_GB"
SCHEMES = ("file", "s3", "gs", "az", "abfss")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SECRET_NAMES = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|ACCOUNT_KEY|CREDENTIAL|SERVICE_ACCOUNT", re.IGNORECASE)
_SHORTEST_SECRET = 4  # characters; a shorter one would be blotted out of ordinary words


@dataclass(frozen=True)
class Settings:
    """One shared cache location.

    url: `postgresql://…`, as libpq understands it; what it leaves out comes from PGUSER, PGPASSWORD, pgpass, …
    blobs: `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///folder`; credentials by the store's own variables.
    tenant: the namespace that entries are kept in and found in.
    tier_bytes: limit of this machine's copies.

    CacheUnavailable when one of them cannot be used; `url` is never part of a message or of the repr.
    """

    url: str = field(repr=False)
    blobs: str = field(repr=False)
    tenant: str = "default"
    tier_bytes: int = 10 * 2**30

    def __post_init__(self):
        if not self.url.startswith(("postgresql://", "postgres://")):
            raise CacheUnavailable(URL, say("reason.not_postgres"), say("advice.url", variable=URL))
        if not self.blobs:
            raise CacheUnavailable(URL, say("reason.not_set", variable=BLOBS), say("advice.blobs"))
        try:
            parts = urlsplit(self.blobs)
        except ValueError:
            raise CacheUnavailable(
                BLOBS, say("reason.not_url"), say("advice.schemes", schemes=", ".join(SCHEMES))
            ) from None
        if parts.scheme not in SCHEMES:
            wrong = f"{parts.scheme}://"
            reason = say("reason.scheme", scheme=wrong) if parts.scheme else say("reason.no_scheme")
            raise CacheUnavailable(BLOBS, reason, say("advice.schemes", schemes=", ".join(SCHEMES)))
        if ("@" in parts.netloc and parts.scheme != "abfss") or parts.query:
            raise CacheUnavailable(BLOBS, say("reason.credentials"), say("advice.credentials"))
        if not _TENANT.fullmatch(self.tenant):
            raise CacheUnavailable(TENANT, say("reason.tenant", tenant=self.tenant), say("advice.tenant"))

    def _known(self) -> Mapping[str, Any]:
        """The parts of the URL."""
        from psycopg.conninfo import conninfo_to_dict

        try:
            return conninfo_to_dict(self.url)
        except Exception:  # whose text quotes the URL
            raise CacheUnavailable(URL, say("reason.libpq"), say("advice.encode")) from None

    @property
    def holds_password(self) -> bool:
        """Whether the URL itself has a secret in it."""
        return bool({"password", "sslpassword", "oauth_client_secret"} & self._known().keys())

    @property
    def place(self) -> str:
        """The database in words: host, port and name, never the user or the password."""
        known = self._known()
        host = known.get("host") or os.environ.get("PGHOST") or "localhost"
        port = known.get("port") or os.environ.get("PGPORT") or "5432"
        name = known.get("dbname") or os.environ.get("PGDATABASE") or "its default database"
        return f"postgresql://{host}:{port}/{name}"

    def redacted(self, text: str) -> str:
        """`text` without any password, secret or token that the environment or the URL holds."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _secrets(self) -> set[str]:
        found = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name)}
        found.add(self.url)
        if match := re.match(r"[a-z]+://[^/?#]*?:([^/]*)@", self.url):
            found |= {match[1], unquote(match[1])}
        if match := re.search(r"[?&]password=([^&]*)", self.url):
            found |= {match[1], unquote(match[1])}
        return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}


def is_set(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether there is a shared cache: `CHORUS_CACHE_URL`. Without it the cache is local."""
    return bool(environment.get(URL, "").strip())


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings where `is_set`. CacheUnavailable or ValueError names the variable that is wrong."""
    url = environment.get(URL, "").strip()
    text = environment.get(LOCAL_GB, "10")
    try:
        tier_bytes = int(float(text) * 2**30)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{LOCAL_GB}={text!r}: expected a number of gigabytes") from error
    return Settings(url, environment.get(BLOBS, "").strip(), environment.get(TENANT, "default").strip(), tier_bytes)
