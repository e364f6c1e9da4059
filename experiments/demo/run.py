"""The whole road, once: from text and puzzles to a model that thinks.

    python -m experiments.demo.run
    python -m experiments.demo.run --size=quick
    python -m experiments.demo.run --size=game24 --seed=1

Stages run one after the other, each in a process of its own: pre-training,
instruction tuning, the value head, games of the model's own, the value head
again on their outcomes, the search, some samples. Interrupt it and
run the same command again to go on. It ends with a table, and leaves
report.html, report.json and figures in the working folder.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from experiments.demo import report
from experiments.demo import stages
from experiments.demo.stages import Stage
from lm.evals import curves
from lm.types import UserError


# Each has a config for every stage: configs/SIZE/, and configs/search/SIZE.py.
SIZES = {"demo": "runs/demo", "quick": "runs/quick",
         "game24": "runs/game24/{seed}"}


def road(root: pathlib.Path, size: str, *, seed: int | None = None
         ) -> list[Stage]:
  """The stages, in order."""
  seeds = () if seed is None else (f"--config.seed={seed}",)
  samples = root / "samples" / "samples.json"

  def stage(name, about, *after, module=None, more=()):
    config = (f"configs/search/{size}.py" if name == "search"
              else f"configs/{size}/{name}.py")
    return Stage(name, about, f"experiments.{module or name}.run", config,
                 after, (*seeds, *more))

  attempts = root / "attempts" / "attempts.jsonl"
  return [
      stage("pretrain", "reads text, code and games until it can predict them"),
      stage("instruct", "learns to answer what it is asked", "pretrain"),
      stage("value", "learns to judge whether a thought leads to success",
            "instruct"),
      stage("attempts", "plays training games itself, well and badly", "value"),
      stage("judge", "learns from how its own games ended", "value", "attempts",
            module="value",
            more=(f"--config.data.sources.attempts.path={attempts}",
                  f"--config.data.folder={root / 'value' / 'data'}")),
      stage("search", "solves games it never saw, thinking longer and longer",
            "judge"),
      Stage("samples", "the base and the instructed model, same prompts",
            "experiments.demo.samples", after=("pretrain", "instruct"),
            arguments=(f"--base={root / 'pretrain'}",
                       f"--instructed={root / 'instruct'}",
                       f"--out={samples}", f"--seed={seed or 0}")),
  ]


def run(root: pathlib.Path, size: str, *, seed: int | None, until: str,
        console) -> None:
  """Runs what is not done up to `until`; at the end, reports."""
  plan = road(root, size, seed=seed)
  last = [s.name for s in plan].index(until) + 1
  with stages.alone(root) as lock:
    marks = stages.check(plan, root)
    for i, (stage, mark) in enumerate(zip(plan[:last], marks), 1):
      done = stages.marker(root / stage.name).get("done")
      console.rule(f"[bold]{i}/{len(plan)} {stage.name}[/]: {stage.about}",
                   align="left", style="dim")
      seconds = stages.run(stage, root, mark, lock=lock)
      console.print(f"{'already done' if done else 'done'}, "
                    f"{report.duration(seconds)}", style="green",
                    highlight=False)
    if last < len(plan):
      return
    found = report.collect(root, size)
    written = report.write(found, root)
  console.print(curves.table(
      found["methods"], title="Game of 24, games that it never saw"))
  for line in report.headline(found):
    console.print(line, highlight=False)
  console.print(f"Report: {written}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 0, 2 for bad input, or that of a stage."""
  parser = argparse.ArgumentParser(
      prog="python -m experiments.demo.run", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", choices=SIZES, default="demo", help=(
      "quick: tiny models, two minutes, shows that everything runs and no"
      " more; game24: the README's numbers"))
  parser.add_argument("--workdir", help=(
      f"where everything goes; by default {', '.join(SIZES.values())}"))
  parser.add_argument("--seed", type=int, help="by default the configs' own")
  names = [s.name for s in road(pathlib.Path(), "demo")]
  parser.add_argument("--until", choices=names, default=names[-1], help=(
      "the last stage to run; by default all, and then the report"))
  args = parser.parse_args(argv)
  import rich.console
  console = rich.console.Console()
  root = pathlib.Path(
      args.workdir or SIZES[args.size].format(seed=args.seed or 0))
  try:
    run(root, args.size, seed=args.seed, until=args.until,
        console=console)
  except UserError as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  except stages.Ended as e:
    again = ("interrupted" if e.status in (130, 143)
             else f"ended with status {e.status}")
    sys.stderr.write(f"{e.name} {again}: the same command goes on from its last"
                     " checkpoint\n")
    return e.status
  except KeyboardInterrupt:
    sys.stderr.write("interrupted: the same command goes on\n")
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main())
