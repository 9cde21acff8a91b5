"""A real S3 server (moto's) in this process, and what can go wrong with one: `ObjectStore.fail` decides per request."""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

BUCKET = "bucket"
Answer = Literal["refused", "busy", "applied"] | None
"""What becomes of a request: refused with 403; 503 and nothing done; done, and then 500."""


class ObjectStore:
    """The server. `requests` are those it got: method and path."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *args: object, **kw: object) -> None:
                pass

        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.requests: list[str] = []
        self.fail: Callable[[int, str], Answer] = lambda number, request: None
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"127.0.0.1:{self._server.server_port}"

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        with self._lock:
            self.requests.append(request)
            answer = self.fail(len(self.requests), request)
        if answer is None:
            return self._app(environ, start)
        if answer == "applied":
            b"".join(self._app(environ, lambda *args: lambda data: None))
        code, name = {"refused": ("403 Forbidden", "AccessDenied"), "busy": ("503 Slow Down", "SlowDown")}.get(
            answer, ("500 Internal Server Error", "InternalError")
        )
        body = f"<Error><Code>{name}</Code><Message>{name}, as planned</Message></Error>".encode()
        start(code, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def url(self, path: str) -> str:
        """An address that leads to this server."""
        return f"s3://{BUCKET}/{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def clear(self) -> None:
        """Make it empty, and well."""
        import boto3

        self.fail = lambda number, request: None
        client = boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name="us-east-1")
        if BUCKET in [b["Name"] for b in client.list_buckets()["Buckets"]]:
            for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
                client.delete_object(Bucket=BUCKET, Key=found["Key"])
        else:
            client.create_bucket(Bucket=BUCKET)
        self.requests.clear()

    def keys(self, under: str = "") -> list[str]:
        """The objects, without markers of folders."""
        import boto3

        client = boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name="us-east-1")
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=under).get("Contents", [])
        return [o["Key"] for o in found if not o["Key"].endswith("/")]

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        import boto3

        boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name="us-east-1").put_object(
            Bucket=BUCKET, Key=key, Body=data
        )

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server for the time inside."""
    store = ObjectStore()
    try:
        yield store
    finally:
        store.close()
