"""What a check found, and how findings are shown."""

from collections.abc import Callable, Sequence
import dataclasses
import enum
import json
import threading
from typing import Any


class Status(enum.StrEnum):
  """How bad it is; only a fault stops a training run."""

  OK = "ok"
  SKIPPED = "not checked"
  WARNING = "warning"
  FAULT = "fault"


_STYLES = {Status.OK: "green", Status.SKIPPED: "dim", Status.WARNING: "yellow",
           Status.FAULT: "bold red"}


@dataclasses.dataclass(frozen=True)
class Finding:
  """What one check found.

  Attributes:
    name: of the check.
    status: how bad it is.
    what: one line.
    fix: one thing to do; a fault always has it.
  """

  name: str
  status: Status
  what: str
  fix: str = ""

  def __post_init__(self):
    if self.status is Status.FAULT and not self.fix:
      raise ValueError(f"{self.name}: a fault without a fix: {self.what}")


def checked(name: str, check: Callable[..., Finding], *args: Any,
            **keywords: Any) -> Finding:
  """What a check finds; one that crashes is itself a warning."""
  try:
    return check(*args, **keywords)
  except Exception as e:  # Whatever it is, the other checks shall be made.
    return Finding(name, Status.WARNING,
                   f"could not be checked: {type(e).__name__}: {line(e)}")


def faults(findings: Sequence[Finding]) -> int:
  """How many there are."""
  return sum(f.status is Status.FAULT for f in findings)


def report(findings: Sequence[Finding], *, title: str = "",
           width: int | None = None) -> None:
  """Prints a table, each fix under its finding.

  Args:
    findings: a row each.
    title: above.
    width: of the table; by default the terminal's.
  """
  import rich.console
  import rich.table
  import rich.text
  table = rich.table.Table(title=title, title_justify="left", show_lines=False)
  for head in ("check", "status"):
    table.add_column(head, no_wrap=True)
  table.add_column("what", overflow="fold")
  for found in findings:
    what = rich.text.Text(found.what)
    if found.fix:
      what.append(f"\nfix: {found.fix}", style="bold")
    table.add_row(rich.text.Text(found.name), rich.text.Text(
        found.status.value, style=_STYLES[found.status]), what)
  rich.console.Console(width=width).print(table)


def as_json(findings: Sequence[Finding], **about: Any) -> str:
  """All findings, and `about` them, for programs."""
  return json.dumps({
      **about, "faults": faults(findings),
      "findings": [dataclasses.asdict(f) for f in findings]}, indent=1)


def line(error: object) -> str:
  """The first line of an error's text."""
  lines = str(error).strip().splitlines()
  return lines[0].strip() if lines else type(error).__name__


def split(text: str) -> tuple[str, str]:
  """What is wrong and how to mend it, of a line that says both.

  Our own errors end with the cure, after a semicolon or else a colon.
  """
  for mark in ("; ", ": "):
    what, _, fix = text.rpartition(mark)
    if what:
      return what, fix
  return text, ""


def within(seconds: float, function: Callable[[], Any]) -> Any:
  """What a function returns or raises.

  Raises:
    TimeoutError: it takes longer; its thread is left behind.
  """
  result: list[tuple[bool, Any]] = []

  def call():
    try:
      result.append((True, function()))
    except Exception as e:
      result.append((False, e))

  thread = threading.Thread(target=call, daemon=True)
  thread.start()
  thread.join(seconds)
  if not result:
    raise TimeoutError(f"no answer in {seconds:g} s")
  fine, value = result[0]
  if not fine:
    raise value
  return value
