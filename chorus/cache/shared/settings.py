"""Where the shared cache is, and how to name it in messages without its secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus, unquote, urlencode, urlsplit

from ...messages import say
from ..errors import CacheUnavailable

URL, BLOBS, TENANT, LOCAL_GB = "CHORUS_CACHE_URL", "CHORUS_CACHE_BLOBS", "CHORUS_CACHE_TENANT", "CHORUS_CACHE_LOCAL_GB"
SCHEMES = ("file", "s3", "gs", "az", "abfss")
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SECRET_NAMES = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|ACCOUNT_KEY|CREDENTIAL|SERVICE_ACCOUNT", re.IGNORECASE)
_ADDRESS_NAMES = re.compile(r"ENDPOINT|PROXY", re.IGNORECASE)  # of variables whose address may hold a password
_STORE_ADDRESS = re.compile(r"(?:AWS|AZURE|GOOGLE)_(?:\w+_)?(ENDPOINT|PROXY)(?:_URL\w*)?")
_SHORTEST_SECRET = 4  # characters; a shorter one would be blotted out of ordinary words
_KEYS = frozenset(("scram_client_key", "scram_server_key"))  # libpq's, which may not be empty
# Where the database is and how it is spoken to: what a URL that somebody chose on a page may say. Any other of libpq's
# options could read a file of this machine (passfile, service, sslkey), write one (sslkeylogfile) or hold a secret.
CHOOSABLE = frozenset(
    (
        "user",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "sslmode",
        "sslrootcert",
        "target_session_attrs",
        "load_balance_hosts",
    )
)


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
        _require_location(self.blobs)
        if not _TENANT.fullmatch(self.tenant):
            raise CacheUnavailable(TENANT, say("reason.tenant", tenant=self.tenant), say("advice.tenant"))
        self._known()
        if not self.blobs.startswith("file:"):
            _require_addresses()

    def _known(self) -> Mapping[str, str]:
        """The options of the URL, read by libpq.

        A password with an unescaped '/', '@' or '?' makes libpq take the rest of it for a host, port or database
        name, which messages show. None of these can have an '@', and a port is a number: CacheUnavailable otherwise.
        """
        from psycopg.conninfo import conninfo_to_dict

        try:
            known = {name: str(value) for name, value in conninfo_to_dict(self.url).items()}
            shown = [known.get(name, "") for name in ("host", "hostaddr", "port", "dbname")]
            if any("@" in value for value in shown):
                raise ValueError
            if any(port and not 0 < int(port) < 65536 for port in known.get("port", "").split(",")):
                raise ValueError
        except Exception:  # whose text quotes the URL
            raise CacheUnavailable(URL, say("reason.libpq"), say("advice.encode")) from None
        return known

    @property
    def holds_password(self) -> bool:
        """Whether the URL itself has a secret in it."""
        return any(self._known().get(name) for name in _secret_options())

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
        return re.sub(r"://[^\s'\"]*@", "://***@", text)

    def _secrets(self) -> set[str]:
        found = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name)} | {self.url}
        found |= {value for name, value in self._known().items() if name in _secret_options()}
        with suppress(ValueError):  # what the query says again, libpq takes from there
            found.add(urlsplit(self.url).password or "")
        for name, value in os.environ.items():
            if _ADDRESS_NAMES.search(name):
                found.update(_passwords_in(value))
        return {form for secret in found for form in _forms(secret) if len(form) >= _SHORTEST_SECRET}


def without_credentials(url: str) -> str:
    """A URL that somebody chose on a page, so that nothing secret of this machine goes to the server it names.

    libpq would add PGPASSWORD, a password file, a client certificate or a Kerberos ticket of the environment. The URL
    that is returned forbids each. CacheUnavailable for a URL with options beyond `CHOOSABLE`.
    """
    from psycopg import pq

    known = Settings(url, "file:///")._known()
    if others := sorted(known.keys() - CHOOSABLE - _secret_options()):
        reason = say("reason.options", names=", ".join(others), known=", ".join(sorted(CHOOSABLE)))
        raise CacheUnavailable(URL, reason, say("advice.environment", variable=URL))
    there = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}  # an older libpq has fewer
    forbidden = {
        **dict.fromkeys(_secret_options() - _KEYS - known.keys(), ""),
        "passfile": f"{os.devnull}/none",  # "" would be the one in the home folder
        "require_auth": "none",
        "sslcertmode": "disable",
        "gssencmode": "disable",
        "options": "",
    }
    added = urlencode({name: value for name, value in sorted(forbidden.items()) if name in there})
    return f"{url}{'&' if '?' in url else '?'}{added}"


def require_no_credentials(blobs: str) -> None:
    """CacheUnavailable for a location that somebody chose on a page and that needs credentials: any but a folder."""
    _require_location(blobs)
    if urlsplit(blobs).scheme != "file":
        raise CacheUnavailable(BLOBS, say("reason.bucket"), say("advice.environment", variable=BLOBS))


def shown_url(url: str, whole: bool) -> str:
    """A database's URL for people: `place`, or all of it where that is asked for and it holds no password."""
    if not url:
        return ""
    try:
        settings = Settings(url, "file:///")
        return url if whole and not settings.holds_password else settings.place
    except CacheUnavailable:  # said where it is used
        return "postgresql://…"


def shown_blobs(blobs: str) -> str:
    """A location for people: as it is, unless it may hold credentials."""
    try:
        if blobs:
            _require_location(blobs)
        return blobs
    except CacheUnavailable:
        return "…"


def _require_location(blobs: str) -> None:
    """CacheUnavailable for what is no location of files, or holds more than a location."""
    if not blobs:
        raise CacheUnavailable(URL, say("reason.not_set", variable=BLOBS), say("advice.blobs"))
    schemes = say("advice.schemes", schemes=", ".join(SCHEMES))
    try:
        parts = urlsplit(blobs)
    except ValueError:
        raise CacheUnavailable(BLOBS, say("reason.not_url"), schemes) from None
    if parts.scheme not in SCHEMES:
        wrong = f"{parts.scheme}://"
        reason = say("reason.scheme", scheme=wrong) if parts.scheme else say("reason.no_scheme")
        raise CacheUnavailable(BLOBS, reason, schemes)
    account = r"[\w.-]+@[\w.-]+" if parts.scheme == "abfss" else r"[\w.-]*"
    elsewhere = parts.query or parts.fragment or (parts.scheme != "file" and "@" in parts.path)
    if elsewhere or not re.fullmatch(account, parts.netloc):
        raise CacheUnavailable(BLOBS, say("reason.credentials"), say("advice.credentials"))


def _require_addresses() -> None:
    """CacheUnavailable for an address of the object store in the environment that is none, or holds a password.

    The library would show such a password, or end in a panic of its own.
    """
    for name, value in os.environ.items():
        if not (match := _STORE_ADDRESS.fullmatch(name)) or not value:
            continue
        try:
            parts = urlsplit(value)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            sound = False
        after = value.partition("://")[2].partition("/")
        if not sound or "@" in after[2] or after[0].count("@") > 1 or re.search(r"[\s\"'\\<>^`{|}]", value):
            raise CacheUnavailable(name, say("reason.not_url"), say("advice.encode"))
        if "@" in after[0] and match[1] != "PROXY":
            raise CacheUnavailable(name, say("reason.credentials"), say("advice.credentials"))


def _secret_options() -> set[str]:
    """libpq's options that it marks as passwords, and the keys that stand for one."""
    from psycopg import pq

    passwords = {option.keyword.decode() for option in pq.Conninfo.get_defaults() if option.dispchar == b"*"}
    return passwords | _KEYS


def _passwords_in(url: str) -> Iterator[str]:
    """The password between "://" and "@", and its parts: who does not find it where it should be quotes a part."""
    start, end = url.find("://"), url.rfind("@")
    if 0 <= start < end:
        _, _, password = url[start + 3 : end].partition(":")
        yield password
        yield from re.split(r"[/@:?#]", password)


def _forms(secret: str) -> set[str]:
    """A secret as it is and as it may stand in a URL."""
    return {secret, unquote(secret), quote(secret), quote(secret, safe=""), quote_plus(secret)}


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
