"""How self-play went: held-out accuracy and the share solved, by round."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.evals import plot_style
from lm.types import UserError

_SERIES = (("search", "#007a5a", "held out, tree of thoughts"),
           ("greedy", "#1c1e21", "held out, greedy"),
           ("solved_share", "#0072b2", "training problems solved"))


def rounds(done: Sequence[Mapping[str, Any]]) -> Any:
  """The figure of the rounds' results; round 0 is before any search."""
  import matplotlib
  import matplotlib.ticker
  if not done:
    raise UserError("no round to draw: has self-play begun?")
  figure, (ax,) = plot_style.figure(6.4, 3.6)
  with matplotlib.rc_context(plot_style.STYLE):
    for name, colour, label in _SERIES:
      x = [d["round"] for d in done if name in d]
      y = [100 * d[name] for d in done if name in d]
      dashes = "--" if name == "solved_share" else "-"
      ax.plot(x, y, color=colour, ls=dashes, marker="o", ms=4, lw=1.8,
              label=label)
      if f"{name}_interval" in done[0]:
        low, high = zip(*(d[f"{name}_interval"] for d in done))
        ax.fill_between(x, [100 * v for v in low], [100 * v for v in high],
                        color=colour, alpha=0.1, lw=0)
    ax.set_ylim(0, 101)
    ax.set_xlabel("round")
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    ax.set_ylabel("solved (%)")
    ax.legend(loc="best")
  return figure
