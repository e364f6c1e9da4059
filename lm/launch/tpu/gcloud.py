"""Runs `gcloud`: argument lists in, text or parsed JSON out.

No shell is involved; what runs on another machine is put together by
shlex.join. Flags of all commands (--project, --quiet, --format) are of
docs.cloud.google.com/sdk/gcloud/reference.
"""

from collections.abc import Callable, Sequence
import json
import shlex
import shutil
import subprocess
import sys
from typing import Any

from lm.launch.tpu import errors
from lm.types import UserError


def say(line: str) -> None:
  """Tells the user one line."""
  sys.stdout.write(line + "\n")
  sys.stdout.flush()


class Gcloud:
  """gcloud in one project.

  Attributes:
    project: its id; empty is gcloud's own default.
    dry_run: commands that change something are only shown.
  """

  def __init__(self, project: str = "", *, dry_run: bool = False,
               tell: Callable[[str], None] = say):
    self.project, self.dry_run, self._tell = project, dry_run, tell

  def command(self, words: Sequence[str]) -> list[str]:
    """The whole argument list of a command."""
    project = [f"--project={self.project}"] if self.project else []
    return ["gcloud", *words, *project, "--quiet"]

  def read(self, words: Sequence[str], *, what: str, **about: str) -> str:
    """Runs a command that changes nothing, also in a dry run.

    Args:
      words: of the command, without "gcloud".
      what: what is being done, for an error's line.
      **about: of `errors.explained`.

    Returns:
      What it prints.

    Raises:
      UserError: there is no gcloud.
      GcloudError: it failed.
    """
    return self._run(words, None, what, about)

  def change(self, words: Sequence[str], *, what: str,
             text: str | None = None, **about: str) -> str:
    """As `read`, for what changes something; a dry run only shows it.

    Args:
      words: of the command.
      what: what is being done.
      text: what it reads from its standard input.
      **about: of `errors.explained`.
    """
    if self.dry_run:
      self._tell(shlex.join(self.command(words)))
      return ""
    return self._run(words, text, what, about)

  def json(self, words: Sequence[str], *, what: str, **about: str) -> Any:
    """What a command prints as JSON."""
    printed = self.read([*words, "--format=json"], what=what, **about)
    try:
      return json.loads(printed or "null")
    except ValueError as e:
      raise UserError(f"could not {what}: gcloud did not print JSON; bring it"
                      " up to date with gcloud components update") from e

  def find(self, words: Sequence[str], *, what: str, **about: str) -> Any:
    """As `json`; None if there is no such thing."""
    try:
      return self.json(words, what=what, **about)
    except errors.GcloudError as e:
      if e.kind == "missing":
        return None
      raise

  def stream(self, words: Sequence[str]) -> int:
    """Runs a command whose output goes to the user; returns its status."""
    return subprocess.run(
        [self._program(), *self.command(words)[1:]], check=False).returncode

  def _program(self) -> str:
    program = shutil.which("gcloud")
    if not program:
      raise UserError("gcloud is not on PATH: install the Google Cloud CLI"
                      " (docs.cloud.google.com/sdk/docs/install), then run"
                      " gcloud init")
    return program

  def _run(self, words, text, what, about) -> str:
    feed = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    done = subprocess.run(
        [self._program(), *self.command(words)[1:]], text=True,
        capture_output=True, check=False, **feed)
    if done.returncode:
      raise errors.explained(done.stderr, what=what, **about)
    return done.stdout
