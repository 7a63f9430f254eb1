"""Where the caches are: the environment says, else what was chosen in ComfyUI's settings, else ComfyUI's user folder.

What was chosen lies in ComfyUI's private user folder, which no route serves or writes, and not in comfy.settings.json:
whoever reaches the server may write that one, also while it is not allowed to choose here.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import CacheUnavailable
from ..messages import BadInput, Message, say
from . import small_file, users

if TYPE_CHECKING:
    from ..cache.shared import Settings

# Each part of a place, and the environment variable that fixes it.
VARIABLES = {"folder": "CHORUS_CACHE_DIR", "url": "CHORUS_CACHE_URL", "blobs": "CHORUS_CACHE_BLOBS"}
OPT_IN = "CHORUS_ALLOW_REMOTE_SETTINGS"  # "1": places may be chosen over the network, too


@dataclass(frozen=True)
class Place:
    """Where all caches lie.

    folder: of local caches, or of this machine's copies of shared ones. url, blobs: of the shared cache's database and
    files, "" where the caches are local; never shown as they are, since they may come from the environment with a
    password inside. user: whose caches these are, "" where ComfyUI does not keep its users apart.
    """

    folder: Path
    url: str = field(default="", repr=False)
    blobs: str = field(default="", repr=False)
    user: str = ""

    @property
    def shared(self) -> bool:
        return bool(self.url)

    def settings(self) -> Settings:
        """Of the shared cache. CacheUnavailable or ValueError names what is wrong; for a shared place only.

        What the environment names gets the credentials that are there; what was chosen on a page gets none.
        """
        try:  # here: what it imports costs a local cache nothing
            from ..cache.shared import from_environment
            from ..cache.shared.settings import require_no_credentials, without_credentials
        except ImportError as error:
            reason = say("reason.package", error=error)
            raise CacheUnavailable(VARIABLES["url"], reason, say("advice.requirements")) from error
        url = self.url
        settings = from_environment({**os.environ, VARIABLES["url"]: url, VARIABLES["blobs"]: self.blobs})
        if not _from_environment("url"):
            settings = replace(settings, url=without_credentials(url))
        if not _from_environment("blobs"):
            require_no_credentials(self.blobs)
        return settings


class NotAllowed(Exception):
    """The place may not be chosen over this server; `said` tells why, and what to do."""

    def __init__(self, said: Message):
        super().__init__(str(said))
        self.said = said


def current() -> Place:
    """The place of caches that are opened now."""
    return _place(_chosen())


def shown(proxied: bool = False) -> dict[str, dict[str, Any]]:
    """For a page: each part's `value`, without secrets, and `fixed`, why it cannot be chosen there, or None.

    proxied: whether the page is asked for through a proxy, behind which anybody may sit.
    """
    values = _shown(current())
    reasons = {part: _fixed(part, proxied) for part in VARIABLES}
    return {part: {"value": values[part], "fixed": said.to_json() if said else None} for part, said in reasons.items()}


def choose(proxied: bool = False, **parts: str) -> None:
    """Remember a chosen place, `folder` or `url` and `blobs`, for caches opened from now on, also after a restart.

    "" takes the usual one back. Each is tried first: NotAllowed, BadInput or CacheUnavailable say why it is refused.
    proxied: see `shown`.
    """
    for part in parts:
        if said := _fixed(part, proxied):
            raise BadInput(said) if _from_environment(part) else NotAllowed(said)
    asked = _chosen() | {part: value.strip() for part, value in parts.items()}
    chosen = {part: value for part, value in asked.items() if value and value != str(_private())}
    place = _place(chosen)
    if "folder" in parts and "folder" in chosen:
        _try_folder(place.folder)
    if place.shared and parts.keys() & {"url", "blobs"}:
        _try_shared(place)
    small_file.write(_file(), chosen)


def _place(chosen: dict[str, str]) -> Place:
    folder, url, blobs = (_from_environment(part) or chosen.get(part, "") for part in VARIABLES)
    # "~name" of nobody here stays as it is, and so is no absolute path; Path.expanduser would raise.
    return Place(Path(os.path.expanduser(folder)) if folder else _private(), url, blobs, users.of_run())


def _from_environment(part: str) -> str:
    return os.environ.get(VARIABLES[part], "").strip()


def _private() -> Path:
    import folder_paths

    return Path(folder_paths.get_system_user_directory("chorus"))


def _file() -> Path:
    return _private() / "place.json"


def _chosen() -> dict[str, str]:
    known = small_file.read(_file())
    if not isinstance(known, dict):  # never chosen, or not readable: the default place
        return {}
    return {part: known[part] for part in VARIABLES if isinstance(known.get(part), str)}


def _fixed(part: str, proxied: bool) -> Message | None:
    """Why a part cannot be chosen over this server, if so."""
    if _from_environment(part):
        return say("route.fixed", variable=VARIABLES[part])
    from comfy.cli_args import args

    alone = not proxied and listens_here_only()
    if alone or os.environ.get(OPT_IN) == "1":
        return None
    listen = f"{args.listen} + proxy" if proxied else args.listen
    return say("place.exposed", listen=listen, name=VARIABLES[part], variable=OPT_IN)


def listens_here_only() -> bool:
    """Whether ComfyUI can be reached from this machine alone."""
    from comfy.cli_args import args

    return all(is_loopback(address.strip()) for address in args.listen.split(","))


def is_loopback(host: str) -> bool:
    """Whether a host name or address always means the machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _shown(place: Place) -> dict[str, str]:
    """The parts of a place for people: as they were chosen, without what may be a secret."""
    if not place.url and not place.blobs:
        return {"folder": str(place.folder), "url": "", "blobs": ""}
    try:
        from ..cache.shared.settings import shown_blobs, shown_url
    except ImportError:  # said where it is used
        return {"folder": str(place.folder), "url": "…" if place.url else "", "blobs": "…" if place.blobs else ""}
    url = shown_url(place.url, whole=not _from_environment("url"))
    return {"folder": str(place.folder), "url": url, "blobs": shown_blobs(place.blobs)}


def _try_folder(folder: Path) -> None:
    """Make the folder where it is missing, and write to it."""
    if not folder.is_absolute():
        raise BadInput(say("place.relative", folder=folder))
    try:
        if folder.exists() and not folder.is_dir():
            raise BadInput(say("place.no_folder", folder=folder))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"chorus")
    except OSError as error:
        raise CacheUnavailable.of_disk(folder, error) from error
    except BadInput:
        raise
    except ValueError as error:  # a NUL inside
        raise BadInput(say("place.relative", folder=repr(str(folder)))) from error


def _try_shared(place: Place) -> None:
    """Connect to the database, and see that the files are its own."""
    settings = place.settings()
    if not _from_environment("url") and settings.holds_password:
        raise BadInput(say("place.password", variable=VARIABLES["url"]))
    from ..cache.shared import SharedCache

    cache = SharedCache(settings, "default", tier=place.folder, upkeep=False)
    try:
        cache.check()
    except CacheUnavailable as error:
        if 'method requirement "none"' in str(error):  # libpq's words; see `without_credentials`
            raise BadInput(say("place.needs_password", variable=VARIABLES["url"])) from error
        raise
    finally:
        cache.close()
