"""Tells who asks: a page of this server, a page from elsewhere in somebody's browser, or a program without a page.

There is no login, so a page from elsewhere could use the browser of somebody who reaches this server: from its own
address, or (DNS rebinding) under a name of its own that it lets point to this machine. The browser gives both away, in
Origin and in Host, and no page can change these two. ComfyUI checks them only in part: not with --enable-cors-header,
and not for names that do not mean this machine.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from ...messages import Message, say
from ..place import is_loopback, listens_here_only

# Further names of this server, and of servers whose pages may ask it, separated by commas.
VARIABLE = "CHORUS_ALLOWED_HOSTS"
# Names that only a local network has, beside those without a dot: no public name server answers for them.
_LOCAL_NETWORK = (".local", ".lan", ".internal", ".home.arpa")
_FORWARDED = ("Forwarded", "Via", "X-Real-IP")


def refusal(request: web.Request) -> Message | None:
    """Why a request is not answered; None where it is."""
    host, origin = request.headers.get("Host", ""), _origin(request)
    if host and not _is_own(host, request):
        return say("route.host", host=host[:80], variable=VARIABLE)
    if origin and not _is_same(origin, host) and not _is_allowed(origin):
        return say("route.origin", origin=origin[:80], variable=VARIABLE)
    return None


def from_this_machine(request: web.Request) -> bool:
    """Whether a request shows no sign of coming from anywhere but a page of this server, opened on this machine."""
    host, origin = request.headers.get("Host", ""), _origin(request)
    forwarded = any(name in request.headers for name in _FORWARDED)
    forwarded = forwarded or any(name.lower().startswith("x-forwarded-") for name in request.headers)
    return not forwarded and is_loopback(_name(host)) and (not origin or _is_same(origin, host))


def _origin(request: web.Request) -> str:
    """The page that asks, by its origin; "" where the browser does not say that there is one elsewhere."""
    if (origin := request.headers.get("Origin")) is not None:
        return origin or "null"
    # Browsers leave the origin out for what a page could not read, such as a picture.
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return request.headers.get("Referer") or "null"
    return ""


def _is_own(host: str, request: web.Request) -> bool:
    """Whether a Host is a name of this server, which no page from elsewhere can have."""
    name = _name(host)
    if is_loopback(name) or _is_listed(name):
        return True
    if not listens_here_only() and (_is_address(name) or "." not in name or name.endswith(_LOCAL_NETWORK)):
        return bool(name)
    # Over TLS the browser has seen a certificate for the name. Where this server has none, a proxy before it does.
    page = request.headers.get("Origin", "") or request.headers.get("Referer", "")
    return request.secure or (page.startswith("https://") and _name(page) == name != "")


def _is_same(origin: str, host: str) -> bool:
    """Whether an origin is the page that this server has at `host`."""
    page, here = _split(origin), _split(host)
    if page is None or here is None or page.hostname != here.hostname:
        return False
    usual = {"http": 80, "https": 443}.get(page.scheme)
    # A proxy may leave the port out of Host.
    return here.port is None or (page.port or usual) == here.port


def _is_allowed(origin: str) -> bool:
    """Whether whoever runs this server has named an origin: to Chorus, or to ComfyUI, whose "*" names none."""
    from comfy.cli_args import args

    return _is_listed(_name(origin)) or origin == args.enable_cors_header


def _is_listed(name: str) -> bool:
    return name != "" and name in {known.strip().lower() for known in os.environ.get(VARIABLE, "").split(",")}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(where: str) -> str:
    """The host name of a URL or of a Host header, in lower case; "" for what is neither."""
    parts = _split(where)
    return (parts.hostname or "") if parts else ""


def _split(where: str) -> SplitResult | None:
    try:
        parts = urlsplit(where if "://" in where else f"//{where}")
        _ = parts.port  # ValueError where it is no number
    except ValueError:
        return None
    return None if "@" in parts.netloc else parts
