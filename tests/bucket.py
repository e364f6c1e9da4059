"""A real server of the storage API on this machine, and buckets in it.

One server for each test process, because tensorstore notes its address once.
Child processes find it by the same environment. It also does as a bucket does
that refuses. Two faults of the server's own: it does not say an object's
generation with its bytes, which is added here, for tensorstore wants it when it
writes an object again; and a small object that gcsfs writes loses a carriage
return at its end, so tests put none there.
"""

from collections.abc import Callable
import contextlib
import functools
from http import HTTPStatus
import http.server
import itertools
import os
import re
import threading
import urllib.parse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator import storage as storage_lib
from gcp_storage_emulator.handlers import buckets

_count = itertools.count()
_MEDIA = re.compile(
    r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/?]+)\?.*alt=media")


class _Handler(emulator.RequestHandler):
  """Refuses what `_Server.refused` says; counts what is asked."""

  def __getattribute__(self, name):
    if name in ("do_GET", "do_POST", "do_PUT", "do_PATCH", "do_DELETE"):
      return lambda: self._answer(name)
    return super().__getattribute__(name)

  def _answer(self, name):
    method = name.removeprefix("do_")
    self.server.requests.append((method, self.path))
    if self.server.refused(method, self.path):
      self.rfile.read(int(self.headers.get("Content-Length") or 0))
      body = (b'{"error": {"code": 403, "message": "x@y does not have'
              b' storage.objects.create access to the bucket."}}')
      self.send_response(HTTPStatus.FORBIDDEN.value)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)
      return
    getattr(super(), name)()

  def end_headers(self):
    found = _MEDIA.match(self.path) if self.command == "GET" else None
    if found:
      bucket, name = map(urllib.parse.unquote, found.groups())
      about = self.server.storage.objects.get(bucket, {}).get(name)
      if about:
        self.send_header("x-goog-generation", about["generation"])
    super().end_headers()

  def log_message(self, *args):
    pass


class _Server(http.server.HTTPServer):
  """Serves one request after the other: the emulator knows no locks."""

  request_queue_size = 100

  def __init__(self, storage):
    super().__init__(("localhost", 0), functools.partial(_Handler, storage))
    self.storage = storage
    self.refused: Callable[[str, str], bool] = lambda method, path: False
    self.requests: list[tuple[str, str]] = []

  def handle_error(self, request, client_address):
    pass  # Clients hang up early.


@functools.cache
def serve() -> tuple[_Server, storage_lib.Storage]:
  """The server of this process, and what clients need in the environment."""
  for module in (emulator, storage_lib):
    module.logger.disabled = True
  storage = storage_lib.Storage(use_memory_fs=True)
  made = _Server(storage)
  threading.Thread(target=made.serve_forever, daemon=True).start()
  url = f"http://localhost:{made.server_address[1]}"
  os.environ.update(
      STORAGE_EMULATOR_HOST=url, TENSORSTORE_GCS_HTTP_URL=url,
      GOOGLE_AUTH_TOKEN_FOR_TESTING="none")
  return made, storage


class Bucket:
  """A new empty bucket.

  Attributes:
    url: `gs://name`.
  """

  def __init__(self):
    self._server, self._storage = serve()
    self._server.refused = lambda method, path: False
    self._name = f"bucket-{next(_count)}"
    made = buckets.create_bucket(self._name, self._storage)
    made["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
    self.url = f"gs://{self._name}"

  def names(self, below: str = "") -> list[str]:
    """Names of all objects that begin so."""
    found = self._storage.objects.get(self._name, {})
    return sorted(name for name in found if name.startswith(below))

  def in_order(self) -> list[str]:
    """Names of all objects, those first that were written first."""
    when = lambda name: int(self._storage.get_file_obj(
        self._name, name)["generation"])
    return sorted(self.names(), key=when)

  def read(self, name: str) -> bytes:
    return self._storage.get_file(self._name, name)

  def change(self, name: str, to: bytes | None) -> None:
    """Other bytes for an object that is there; None removes it."""
    if to is None:
      self._storage.delete_file(self._name, name)
      return
    about = {**self._storage.get_file_obj(self._name, name),
             "size": str(len(to))}
    self._storage.create_file(self._name, name, to, about)

  @contextlib.contextmanager
  def harmed(self, name: str, harm: Callable[[bytes], bytes | None]):
    """Meanwhile the object is what `harm` makes of it; None is gone."""
    about = self._storage.get_file_obj(self._name, name)
    whole = self.read(name)
    self.change(name, harm(whole))
    try:
      yield
    finally:
      self._storage.create_file(self._name, name, whole, about)

  @contextlib.contextmanager
  def refusing(self, refused: Callable[[str, str], bool]):
    """Answers 403 where `refused(method, path)` says so."""
    self._server.refused = refused
    try:
      yield
    finally:
      self._server.refused = lambda method, path: False

  @contextlib.contextmanager
  def requests(self):
    """A list that fills with (method, path) of what is asked meanwhile."""
    begin = len(self._server.requests)
    found: list[tuple[str, str]] = []
    yield found
    found += self._server.requests[begin:]


def truncated(raw: bytes) -> bytes:
  return raw[:-1]


def flipped(raw: bytes) -> bytes:
  middle = len(raw) // 2
  return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1:]


def missing(raw: bytes) -> None:
  del raw


def writes(method: str, path: str) -> bool:
  """Whether a request changes something; for `refusing`."""
  del path
  return method != "GET"
