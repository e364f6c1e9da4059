"""The command `lm draw`: flags; `lm.search.draw_file` does the work."""

import pathlib

from lm.types import UserError

_TEXT = ("Draws a search's tree of thoughts as an SVG, or as a page with the"
         " answer's text, from what a search left behind.")


def add(commands) -> None:
  """Adds the sub-command to argparse's `commands`."""
  parser = commands.add_parser("draw", help=_TEXT, description=_TEXT)
  parser.set_defaults(call=_draw, takes_overrides=False)
  parser.add_argument("transcript", metavar="TRANSCRIPT", help=(
      "a search's report.json, a Result.to_dict() as JSON, or a JSONL of such"))
  parser.add_argument("--out", default="tree.svg", metavar="FILE", help=(
      "the .svg or .html file to write, by default tree.svg"))
  parser.add_argument("--index", type=int, default=0, metavar="N",
                      help="which search of several, from 0, by default 0")


def _draw(args) -> None:
  from lm.search import draw_file
  out = pathlib.Path(args.out)
  found = draw_file.read(args.transcript)
  text = draw_file.render(found, args.index, out.suffix)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
  except OSError as e:
    raise UserError(f"{out} cannot be written: {e}") from e
  print(f"{out}: search {args.index} of {len(found)}")
