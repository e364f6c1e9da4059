"""The repository at its exact commit, as one archive in WORKDIR/launch."""

import pathlib
import subprocess
import tempfile

from lm.launch.tpu import store as store_lib
from lm.types import UserError

_SHOWN = 5  # Files that are named.


def commit(folder: pathlib.Path | None = None) -> tuple[str, pathlib.Path]:
  """The commit that is checked out, and the checkout's root.

  Args:
    folder: in the checkout; by default the current one.

  Raises:
    UserError: it is no git checkout, or differs from the commit: what runs
      must be what the commit says.
  """
  folder = folder or pathlib.Path.cwd()
  root = pathlib.Path(_git(folder, "rev-parse", "--show-toplevel").strip())
  head = _git(root, "rev-parse", "HEAD").strip()
  changed = [line[3:] for line in
             _git(root, "status", "--porcelain").splitlines()]
  if changed:
    more = len(changed) - _SHOWN
    names = ", ".join(changed[:_SHOWN]) + (f" and {more} more" if more > 0
                                           else "")
    raise UserError(f"{root} has changes that are not committed ({names}): the"
                    " VMs run a commit, so git commit or git stash first")
  return head, root


def send(store: store_lib.Store, folder: pathlib.Path | None = None) -> str:
  """Uploads the commit that is checked out, if it is not there; returns it."""
  head, root = commit(folder)
  with tempfile.TemporaryDirectory() as scratch:
    archive = pathlib.Path(scratch) / f"{head}.tar.gz"
    _git(root, "archive", "--format=tar.gz", f"--output={archive}", head)
    store.upload(archive, f"launch/{head}.tar.gz")
  return head


def _git(folder: pathlib.Path, *words: str) -> str:
  try:
    done = subprocess.run(["git", *words], cwd=folder, text=True,
                          capture_output=True, check=False)
  except FileNotFoundError as e:
    raise UserError("git is not on PATH: install it") from e
  if done.returncode:
    said = (done.stderr.strip().splitlines() or ["git failed"])[0]
    raise UserError(f"{folder} is not a git checkout with a commit ({said}):"
                    " run lm tpu in a clone of the repository")
  return done.stdout
