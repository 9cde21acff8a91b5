"""Object stores as places for runs and shards: addresses (`s3://…`, `gs://…`), requests and retries, the cache.

pyarrow's file systems make the requests. What may pass (a lost connection, a store that asks to slow down) is tried
again with growing pauses; what does not pass by itself (no rights, no such bucket) ends at once. docs/storage.md has
what a user sees of it.
"""

import hashlib
import json
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlencode

from raygrad import logs
from raygrad.errors import BadInput, Stopped
from raygrad.files import storage

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_LOG = logging.getLogger(__name__)
DELAYS_S: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""The pauses between the attempts of a request, in a run."""
SHORT_DELAYS_S: tuple[float, ...] = (0.5, 1.0)
"""The same where nothing has begun, so that whoever waits for an answer gets one."""
CONNECT_S, SILENT_S = 5.0, 20.0
"""How long a connection may take, and how long it may be silent."""
CHUNK_BYTES = 8 << 20
AT_ONCE = 8
"""So many files travel at once."""
CACHE_VARIABLE = "RAYGRAD_CACHE"

_OPTIONS = ("region", "scheme", "endpoint_override")
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*)://(.*)", re.DOTALL)
_FLATTENED = re.compile(r"(s3|gs|gcs):/(?!/)(.*)", re.DOTALL)  # what a Path makes of one
_SECRET = re.compile(r"key|secret|token|password|credential|signature", re.IGNORECASE)
_CODE = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_NOISE = re.compile(r"\s*\(Request ID:[^)]*\)|\.? Detail: \[errno.*", re.DOTALL)

T = TypeVar("T")
Patience = Literal["long", "short", "none"]
"""How often a request that fails is made again: as in a run, as where nothing has begun, or not at all."""


@dataclass(frozen=True)
class Url:
    """An address in an object store. `path` begins with the bucket; `query` says how the store is reached."""

    scheme: str
    path: str
    query: str = ""

    @staticmethod
    def parse(text: str) -> "Url":
        """From text. Raises BadInput; what the address says is not repeated where it may hold a secret."""
        flattened = _FLATTENED.fullmatch(text)
        match = flattened or _ADDRESS.fullmatch(text)
        scheme = match[1].lower().replace("gcs", "gs") if match else ""
        if match is None or scheme not in ("s3", "gs"):
            raise BadInput(f"{scheme or text[:20]}:// is no address raygrad can use; give a folder, s3://… or gs://…")
        rest, _, query = match[2].partition("?")
        before, at, _ = rest.partition("@")
        if ":" in rest.partition("/")[0] or (at and (":" in before or "/" not in before)):
            raise _secret(scheme)
        parts = [p for p in rest.split("/") if p]
        if not parts or {".", ".."} & set(parts) or "#" in rest or not rest.isprintable():
            raise BadInput(f"{scheme}://{rest[:80]} is no address: expected {scheme}://BUCKET/FOLDER")
        return Url(scheme, "/".join(parts), _options(scheme, query))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> "Url":
        return Url(self.scheme, f"{self.path}/{name}", self.query)

    @property
    def parent(self) -> "Url":
        """One level up; a bucket is its own parent."""
        return Url(self.scheme, self.path.rpartition("/")[0] or self.path, self.query)

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rpartition("/")[2]

    @property
    def bucket(self) -> str:
        """The first part."""
        return self.path.partition("/")[0]

    @property
    def label(self) -> str:
        """A name for a local folder: no two addresses have the same."""
        return f"{self.bucket}-{hashlib.sha256(str(self).encode()).hexdigest()[:12]}"


def _secret(scheme: str) -> BadInput:
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if scheme == "s3" else "GOOGLE_APPLICATION_CREDENTIALS"
    return BadInput(
        f"the {scheme}:// address holds a user or a key, which would stand in run folders and process lists: leave it "
        f"out, give keys by {keys}, a profile or a role, and replace the key that was shown"
    )


def _options(scheme: str, query: str) -> str:
    """The options behind an address's question mark, checked and in order."""
    try:
        found = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as e:
        raise BadInput(f"what follows ? in the {scheme}:// address is not of the form option=value&…") from e
    if any(_SECRET.search(name) for name in found) or any("@" in value for value in found.values()):
        raise _secret(scheme)
    known = _OPTIONS if scheme == "s3" else _OPTIONS[1:]
    for name, value in found.items():
        if name not in known:
            raise BadInput(f"unknown option {name!r} in the {scheme}:// address; known: {', '.join(known)}")
        if not value:
            raise BadInput(f"option {name} in the {scheme}:// address has no value")
    if match := re.fullmatch(r"(https?):/{1,2}(.*?)/*", found.get("endpoint_override", "")):
        found |= {"endpoint_override": match[2], "scheme": found.get("scheme", match[1])}
    if found.get("scheme", "https") not in ("http", "https"):
        raise BadInput(f"option scheme in the {scheme}:// address is {found['scheme']!r}; it must be http or https")
    return urlencode(sorted(found.items()), safe=":")


def location(place: "str | Path | Url") -> "Path | Url":
    """What a run root, a shard root or a run's place is: a folder, or an address. Raises BadInput."""
    if isinstance(place, Url):
        return place
    text = str(place)
    if _ADDRESS.fullmatch(text) or _FLATTENED.fullmatch(text):
        return Url.parse(text)
    return Path(place)


def cache_folder(*names: str) -> Path:
    """A folder in the local cache, made if it is not there: in $RAYGRAD_CACHE, or raygrad in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path(base) / "raygrad").joinpath(*names).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadInput(f"the cache {folder} cannot be made: {e.strerror}; name another by {CACHE_VARIABLE}") from e
    return folder


# --- requests -------------------------------------------------------------------------------------------------------


class Unreachable(Stopped):
    """An object store did not do what was asked. `what` says so without advice; `passes` is whether it may pass."""

    def __init__(self, what: str, passes: bool = False) -> None:
        super().__init__(
            f"storage lost: {what}; the run is resumable: when the storage is back, continue it with `raygrad resume`"
        )
        self.what, self.passes = what, passes


class _Failed(Exception):
    """A request failed; the error of the file system is its cause."""


@contextmanager
def at_start() -> Iterator[None]:
    """Inside nothing has begun: a store that cannot be used is bad input."""
    try:
        yield
    except Unreachable as e:
        raise BadInput(e.what) from e


@contextmanager
def _requesting(may_lack: bool = False) -> Iterator[None]:
    """Inside requests are made. With `may_lack` what they are about may not be there: FileNotFoundError passes."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as e:
        if may_lack and isinstance(e, FileNotFoundError):
            raise
        raise _Failed from e


def _tried(url: Url, doing: str, act: Callable[[], T], patience: Patience) -> T:
    """`act()`, again and again if a request fails in a way that may pass. Raises Unreachable."""
    delays = {"long": DELAYS_S, "short": SHORT_DELAYS_S, "none": ()}[patience]
    began = time.monotonic()
    for number, delay in enumerate((*delays, None), 1):
        try:
            return act()
        except _Failed as e:
            why, passes = _reason(url, e.__cause__ or e)
            if not passes:
                raise Unreachable(f"{url} cannot be {doing}: {why}") from e
            if delay is None:
                tries = f" ({number} attempts in {time.monotonic() - began:.0f} s)" if delays else ""
                raise Unreachable(f"{url} cannot be {doing}: {why}{tries}", passes=True) from e
            log = _LOG.warning if patience == "long" else _LOG.info  # the caller waits for an answer, and gets one
            log("%s cannot be %s: %s; trying again in %g s", url, doing, why, delay)
        time.sleep(delay)
    raise AssertionError


def again(act: Callable[[], T]) -> T:
    """`act()`, which makes several requests without patience, again from its beginning while the store may come back.

    Raises Unreachable.
    """
    began = time.monotonic()
    for number, delay in enumerate((*DELAYS_S, None), 1):
        try:
            return act()
        except Unreachable as e:
            if not e.passes:
                raise
            if delay is None:
                raise Unreachable(f"{e.what} ({number} attempts in {time.monotonic() - began:.0f} s)", True) from e
            _LOG.warning("%s; trying again in %g s", e.what, delay)
        time.sleep(delay)
    raise AssertionError


def _reason(url: Url, error: BaseException) -> tuple[str, bool]:
    """Why a request failed, for people, and whether it may pass by itself."""
    text = _NOISE.sub("", str(error).splitlines()[0] if str(error) else type(error).__name__)
    found = _CODE.search(text)
    code, status = (found[1], found[2]) if found else ("", None)
    keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role" if url.scheme == "s3" else (
        "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account"
    )  # fmt: skip
    if (
        code == "NO_SUCH_BUCKET"
        or isinstance(error, FileNotFoundError)
        or (url.scheme == "gs" and "bucket does not exist" in text)
    ):
        return f"there is no bucket {url.bucket} at this store; make it, or correct the address", False
    if code == "ACCESS_DENIED" or status == "403" or isinstance(error, PermissionError) or "PERMISSION_DENIED" in text:
        return f"access denied; list, read, write and delete must be allowed to {keys}", False
    if "access token" in text or "UNAUTHENTICATED" in text:
        return f"the store was given no key; give {keys}", False
    if code in ("INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "UNRECOGNIZED_CLIENT", "INVALID_CLIENT_TOKEN_ID"):
        return f"the store does not know the key ({code}); check {keys}", False
    if status == "301":
        return "the bucket is in another region; add ?region=… to the address", False
    if status and status.startswith("4") and status not in ("408", "429"):
        return f"the store refuses the request: {text.partition('operation: ')[2] or text}"[:300], False
    return text.partition("operation: ")[2][:200] if code == "NETWORK_CONNECTION" else text[:300], True


def filesystem(url: Url, tries: int = 1) -> "FileSystem":
    """pyarrow's file system for an address; paths in it begin with the bucket. The functions below try again by
    themselves, others should be given one that does.
    """
    variable = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _connected(url.scheme, url.bucket, url.query, variable if url.scheme == "s3" else None, tries)


@cache
def _connected(scheme: str, bucket: str, query: str, endpoint: str | None, tries: int) -> "FileSystem":
    from pyarrow import fs

    options: dict[str, str] = dict(parse_qsl(query))
    if scheme == "gs":
        patience = timedelta(seconds=1 if tries == 1 else 60)
        return fs.GcsFileSystem(retry_time_limit=patience, **options)  # pyright: ignore[reportArgumentType]
    if endpoint and "endpoint_override" not in options:
        kind, slashes, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), **({"scheme": kind} if slashes else {})}
    if "region" not in options and "endpoint_override" not in options:
        with _requesting():
            options["region"] = fs.resolve_s3_region(bucket)
    settings = {
        **options, "connect_timeout": CONNECT_S, "request_timeout": SILENT_S, "background_writes": False,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=tries),
    }  # fmt: skip
    try:
        return fs.S3FileSystem(**settings, allow_delayed_open=True)  # one request for a small object, not three
    except TypeError:  # an older pyarrow
        return fs.S3FileSystem(**settings)


def read(url: Url, patience: Patience = "long") -> bytes:
    """An object's content. Raises FileNotFoundError, Unreachable."""

    def act() -> bytes:
        with _requesting(may_lack=True), filesystem(url).open_input_stream(url.path, compression=None) as source:
            return source.read()

    return _tried(url, "read", act, patience)


def read_json(url: Url, patience: Patience = "long") -> dict[str, Any]:
    """The JSON object in an object that may be written over meanwhile. Raises FileNotFoundError, BadInput, Unreachable.

    Its length is asked for before its content: what comes may be the beginning of a newer one, which is no JSON.
    """
    for delay in (*SHORT_DELAYS_S, None):
        data = read(url, patience)
        try:
            value = json.loads(data)
        except ValueError as e:
            if delay is None:
                raise BadInput(f"{url} is damaged: expected JSON, but {e}") from e
            time.sleep(delay)
            continue
        if not isinstance(value, dict):
            raise BadInput(f"{url} is damaged: expected a JSON object, found {type(value).__name__}")
        return value
    raise AssertionError


def write(url: Url, data: bytes, patience: Patience = "long") -> None:
    """Write an object: whole or not at all. Raises Unreachable."""

    def act() -> None:
        with _requesting():
            sink = filesystem(url).open_output_stream(url.path, compression=None)
            sink.write(data)
            sink.close()

    _tried(url, "written", act, patience)


def upload(path: Path, url: Url) -> None:
    """Copy a file to an object. After a failure a part of it may stand there: do not refer to it before this returns.

    Raises Unreachable, OSError for the file.
    """

    def act() -> None:
        with path.open("rb") as file:
            with _requesting():
                sink = filesystem(url).open_output_stream(url.path, compression=None)
            while chunk := file.read(CHUNK_BYTES):
                with _requesting():
                    sink.write(chunk)
            with _requesting():
                sink.close()

    _tried(url, "written", act, patience="long")


def download(url: Url, path: Path) -> str:
    """Copy an object to a file, which appears when it is complete. Returns its sha256.

    Raises FileNotFoundError, Unreachable, and Stopped when the local storage is full or lost.
    """

    def act() -> str:
        with _requesting(may_lack=True):
            source = filesystem(url).open_input_stream(url.path, compression=None)
        with source, storage.run_storage(path), storage.atomic(path, durable=False) as sink:
            while True:
                with _requesting():
                    chunk = source.read(CHUNK_BYTES)
                if not chunk:
                    break
                sink.write(chunk)
        return sink.sha256

    with storage.run_storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return _tried(url, "read", act, patience="long")


def remove(url: Url, patience: Patience = "long") -> None:
    """Remove an object that may be gone already. Raises Unreachable."""

    def act() -> None:
        try:
            with _requesting(may_lack=True):
                filesystem(url).delete_file(url.path)
        except FileNotFoundError:
            return

    _tried(url, "removed", act, patience)


def remove_all(url: Url) -> None:
    """Remove everything under an address. Raises Unreachable."""

    def act() -> None:
        try:
            with _requesting(may_lack=True):
                filesystem(url).delete_dir(url.path)
        except FileNotFoundError:
            return

    _tried(url, "removed", act, patience="short")


def children(url: Url) -> dict[str, int | None]:
    """The names right under an address with their bytes, None for a folder; sorted. Raises Unreachable."""
    from pyarrow import fs

    def act() -> dict[str, int | None]:
        with _requesting():
            found = filesystem(url).get_file_info(fs.FileSelector(url.path, allow_not_found=True))
        pairs = ((f.base_name, None if f.type == fs.FileType.Directory else f.size) for f in found)
        return dict(sorted(pairs, key=lambda pair: pair[0]))

    return _tried(url, "listed", act, patience="short")


def age_s(url: Url) -> float:
    """How many seconds ago an object was written, by the store's own clock. Raises FileNotFoundError, Unreachable."""
    now = url.parent / f".now-{uuid.uuid4().hex}"
    write(now, b"", patience="short")

    def act() -> float:
        with _requesting():
            old, new = filesystem(url).get_file_info([url.path, now.path])
        if old.mtime_ns is None or new.mtime_ns is None:
            raise FileNotFoundError(str(url))
        return (new.mtime_ns - old.mtime_ns) / 1e9

    try:
        return _tried(url, "read", act, patience="short")
    finally:
        remove(now, patience="short")


def each(act: Callable[[T], object], sizes: Mapping[T, int], what: str) -> None:
    """`act(item)` for all items, a few at once. The first error is raised when those under way have ended.

    `sizes` are their bytes; `what` is done with them, and how far it is is told.
    """
    done, total = 0, sum(sizes.values())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {item: pool.submit(act, item) for item in sizes}
        try:
            for item, future in futures.items():
                future.result()
                done += sizes[item]
                logs.step(what, done, total, "bytes")
        finally:
            for future in futures.values():
                future.cancel()


def check_writable(url: Url) -> None:
    """Refuse a place where nothing can be written or removed, by trying it. Raises BadInput."""
    probe = url / f".raygrad-probe-{socket.gethostname()}-{uuid.uuid4().hex}"
    try:
        write(probe, b"", patience="short")
        remove(probe, patience="short")
    except Unreachable as e:
        raise BadInput(e.what.replace(str(probe), str(url))) from e
