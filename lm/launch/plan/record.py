"""Plans of pod configs, committed: docs/plans/NAME.json, and in docstrings."""

from collections.abc import Callable, Sequence
import pathlib
import re
import textwrap

from lm.launch import config_file
from lm.launch.plan import command
from lm.launch.plan import report
from lm.types import UserError

FOLDER = pathlib.Path("docs/plans")
_BEGIN, _END = "<!-- plans -->", "<!-- end -->"
# The paragraph of a docstring that a plan replaces.
_PARAGRAPH = re.compile(r"^Planned\b.*?(?=\n\n|\n?\"\"\")", re.M | re.S)


def target(path: str) -> tuple[str, int]:
  """The topology and the number of slices that a config is meant for.

  Raises:
    UserError: it does not say.
  """
  plan = config_file.load(path).get("plan")
  if not plan:
    raise UserError(f"{path} does not say what it is planned for: give"
                    " --topology, or set c.plan = dict(topology=.., slices=1)")
  return plan.topology, plan.slices


def refresh(paths: Sequence[str], say: Callable[[str], None]) -> int:
  """Plans configs for their own topologies and records what comes out.

  Args:
    paths: of the configs.
    say: called with a line for each.

  Returns:
    0 if all fit, else 1.
  """
  worst = 0
  for path in paths:
    topology, slices = target(path)
    file = FOLDER / f"{pathlib.Path(path).stem}.json"
    done = command.child(path, topology, slices=slices, json=str(file),
                         quiet=True)
    if not file.exists() or done.returncode not in (0, 1):
      raise UserError(f"{path}: {(done.stderr.strip() or 'no plan')[-300:]}")
    plan = report.from_json(file.read_text())
    write(pathlib.Path(path), plan)
    worst = max(worst, done.returncode)
    say(f"{path}: {' '.join(report.lines(plan))}")
  write_table()
  return worst


def write_table(folder: pathlib.Path = FOLDER) -> None:
  """Puts the table of all recorded plans into the folder's README.md."""
  readme = folder / "README.md"
  before, after = readme.read_text().split(_BEGIN)[0], ""
  if _END in readme.read_text():
    after = readme.read_text().split(_END)[1]
  readme.write_text(f"{before}{_BEGIN}\n{table(folder)}{_END}{after}")


def table(folder: pathlib.Path = FOLDER) -> str:
  """All recorded plans, a Markdown row each."""
  head = ("config", "slice", "HBM, GiB", "step", "tokens/s/chip", "MFU",
          "exposed, GB", "tokens", "days", "list price")
  rows = [head, ("---",) * len(head)]
  for file in sorted(folder.glob("*.json")):
    plan = report.from_json(file.read_text())
    if plan.modelled is None or plan.modelled.budget is None:
      continue
    e, budget = plan.modelled.estimate, plan.modelled.budget
    exposed = sum(t.exposed_bytes for t in plan.modelled.collectives) / 1e9
    price = "none" if budget.usd is None else f"${budget.usd:,.0f}"
    rows.append((
        f"[{file.stem}](../../{plan.config})", plan.place,
        f"{plan.peak_bytes / 2**30:.1f} of {plan.granted_bytes / 2**30:.1f}",
        report.seconds_text(e.step_seconds), f"{e.tokens_per_chip_second:,.0f}",
        f"{e.mfu:.0%}", f"{exposed:.1f}", f"{budget.tokens / 1e9:,.0f}B",
        f"{budget.days:,.1f}", price))
  return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def write(path: pathlib.Path, plan: report.Plan) -> None:
  """Puts a plan in the place of the docstring's paragraph "Planned ..."."""
  source = path.read_text()
  text = "\n".join(report.lines(plan))
  changed, count = _PARAGRAPH.subn(lambda _: text, source, count=1)
  if not count:
    raise UserError(f"{path}: its docstring has no paragraph 'Planned ...' for"
                    " the plan to replace: add one")
  path.write_text(changed)


def recorded(path: pathlib.Path) -> str:
  """The paragraph of a config's docstring, on one line."""
  found = _PARAGRAPH.search(path.read_text())
  return " ".join(textwrap.dedent(found[0]).split()) if found else ""
