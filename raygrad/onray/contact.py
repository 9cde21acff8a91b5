"""Whether a Ray answers at an address, takes our token and has our versions: asked first, in seconds.

A cluster has two addresses. Drivers join at HOST:PORT (6379 by default), jobs are sent to its dashboard, http://HOST:8265.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import ray
from ray._private import services
from ray.exceptions import AuthenticationError

from raygrad.errors import BadInput
from raygrad.onray import tokens

CONNECT_S = 5.0
"""How long an address may take to answer."""
DASHBOARD = "http://127.0.0.1:8265"
"""Ray's default."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


class _Nobody(BadInput):
    """Nobody answers as a dashboard does."""


# --- where drivers join ---------------------------------------------------------------------------------------------


def check_cluster(address: str) -> None:
    """Refuse an address (HOST:PORT) where no Ray listens, that refuses our token or has other versions than we."""
    host, _, port = address.rpartition(":")
    try:
        speaks = _speaks_http2(host.strip("[]"), int(port))
    except (OSError, OverflowError) as e:
        raise BadInput(f'no Ray answers at {address} ({e}); check --address ("" starts a Ray here)') from e
    if not speaks and os.environ.get("RAY_USE_TLS") != "1":
        raise BadInput(
            f"no Ray answers at {address}: who listens there is no cluster for drivers to join (HOST:6379); "
            "it may be a dashboard"
        )
    tokens.check()
    try:
        with _stderr_closed():
            versions = _versions(address)
    except AuthenticationError as e:
        raise BadInput(_token_sentence(f"the Ray at {address}")) from e
    except (ImportError, AttributeError, TypeError):  # another Ray's insides; joining will say what is wrong
        return
    except Exception as e:
        raise BadInput(
            f"no Ray answers at {address}: who listens there is not the head's port for drivers (HOST:6379), or does "
            f"not answer ({type(e).__name__})"
        ) from e
    theirs = (versions.get("ray_version"), versions.get("python_version"))
    ours = (ray.__version__, python_version())
    level = 2 if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL") == "minor" else 3
    if theirs[0] != ours[0] or str(theirs[1]).split(".")[:level] != ours[1].split(".")[:level]:
        raise BadInput(
            f"the cluster at {address} has Ray {theirs[0]} on Python {theirs[1]}, this is Ray {ours[0]} on Python "
            f"{ours[1]}: install the cluster's versions here, or run on one of its nodes"
        )


def python_version() -> str:
    """This process's, to the patch level."""
    return ".".join(map(str, sys.version_info[:3]))


def cluster_here(address: str | None = None) -> str:
    """The HOST:PORT of `address`, or for None and "auto" of the Ray that runs on this machine. Raises BadInput."""
    try:
        return services.canonicalize_bootstrap_address_or_die(address or "auto")
    except ConnectionError as e:
        if "multiple" in str(e):
            raise BadInput("several Rays run on this machine; name one of them with --address") from e
        raise BadInput("no Ray runs on this machine; name one with --address, or start one with `ray start`") from e


def _speaks_http2(host: str, port: int) -> bool:
    """Whether who listens there answers as a gRPC server does, which Ray's are. Raises OSError if nobody listens."""
    with socket.create_connection((host, port), CONNECT_S) as connection:
        try:
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
        except OSError:
            return False
    return len(answer) > 3 and answer[3] == _SETTINGS


@cache
def _versions(address: str) -> Mapping[str, Any]:
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    found = GcsClient(address=address).internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster", timeout=CONNECT_S)
    return json.loads(found) if found else {}


def _token_sentence(where: str) -> str:
    return tokens.missing(where) if tokens.configured() is None else tokens.wrong(where)


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Ray's C++ prints what it does not like; we say it in a sentence."""
    sys.stderr.flush()
    with suppress(OSError):
        former, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(former, 2)
            os.close(former)
            os.close(nowhere)


# --- where jobs are sent --------------------------------------------------------------------------------------------


def dashboard(address: str | None) -> str:
    """The URL of the dashboard that `address` means, or without one of this machine's. Raises BadInput."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if address and "://" in address:
        if not address.startswith(("http://", "https://")):
            raise BadInput(f"address {address!r} is no dashboard's; jobs go to http://HOST:8265")
        return address.rstrip("/")
    if address and address != "auto":
        if address == os.environ.get("RAY_ADDRESS"):  # inside of a job, and where drivers join by it
            return _dashboard_of(address)
        return f"http://{address}"
    with suppress(_Nobody):
        check_dashboard(DASHBOARD, quick=True)
        return DASHBOARD
    try:
        return _dashboard_of(cluster_here())
    except BadInput as e:
        raise BadInput(f"no dashboard at {DASHBOARD}: {e} (jobs go to http://HOST:8265)") from e


def _dashboard_of(address: str) -> str:
    """The URL of the dashboard of the cluster whose drivers join at `address`."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

    check_cluster(address)
    found = GcsClient(address=address).internal_kv_get(b"dashboard", namespace=b"dashboard", timeout=CONNECT_S)
    if not found:
        raise BadInput(
            f"the Ray at {address} has no dashboard, which takes jobs; start it with --include-dashboard=true"
        )
    return f"http://{found.decode()}"


def check_dashboard(url: str, quick: bool = False) -> str | None:
    """Refuse a URL where no dashboard answers, or that refuses our token or has another Ray. Returns a note on another
    Python there, else None. With `quick` only asks whether somebody answers as a dashboard.
    """
    found = _get(url, "/api/version")
    theirs = found.get("ray_version")
    if not isinstance(theirs, str):
        raise _Nobody(f"no Ray's dashboard answers at {url}; jobs go to http://HOST:8265")
    if quick:
        return None
    if theirs != ray.__version__:
        raise BadInput(
            f"the cluster at {url} has Ray {theirs}, this is Ray {ray.__version__}; they must be equal: install "
            f"ray=={theirs} here, or submit on one of its nodes"
        )
    with suppress(BadInput):
        python = _get(url, "/api/v0/cluster_metadata").get("data", {}).get("pythonVersion")
        if python and python != python_version():
            return (
                f"the cluster has Python {python}, this is Python {python_version()}: the recipe was checked by another"
            )
    return None


class _Here(HTTPRedirectHandler):
    """Goes nowhere else: the token is for who was named."""

    def redirect_request(self, *args: object, **kw: object) -> None:
        return None


def _get(url: str, path: str) -> Mapping[str, Any]:
    """A JSON object from a dashboard. Raises BadInput."""
    token = tokens.configured()
    headers = {} if token is None else {"Authorization": f"Bearer {token.value}"}
    try:
        with build_opener(_Here).open(Request(url + path, headers=headers), timeout=CONNECT_S) as answer:
            found = json.loads(answer.read())
    except HTTPError as e:
        if e.code == 401:
            raise BadInput(tokens.missing(f"the Ray at {url}")) from None
        if e.code == 403:
            raise BadInput(tokens.wrong(f"the Ray at {url}")) from None
        raise _Nobody(f"no Ray's dashboard answers at {url} (HTTP {e.code}); jobs go to http://HOST:8265") from e
    except (OSError, HTTPException, ValueError) as e:
        why = e.reason if isinstance(e, URLError) else "no JSON" if isinstance(e, ValueError) else e
        raise _Nobody(
            f"no Ray's dashboard answers at {url} ({why}); check --address, and that the tunnel to it is open"
        ) from e
    return found if isinstance(found, Mapping) else {}
