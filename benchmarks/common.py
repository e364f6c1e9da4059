"""Measuring us and a peer in turn, so that a drifting machine hits both."""

from collections.abc import Callable
import statistics
import sys


def alternate(name: str, ours: Callable[[], float], peer: Callable[[], float],
              *, runs: int = 5, unit: str) -> float:
  """Prints both medians and the median of the ratios ours / peer.

  Args:
    name: of the figure.
    ours: measures us once.
    peer: measures the peer once.
    runs: pairs that count; one before them does not.
    unit: of the figure.

  Returns:
    The median ratio.
  """
  ours(), peer()
  pairs = [(ours(), peer()) for _ in range(runs)]
  a, b = (statistics.median(x) for x in zip(*pairs, strict=True))
  ratio = statistics.median(x / y for x, y in pairs)
  sys.stdout.write(f"{name}: ours {a:,.4g} {unit}, peer {b:,.4g} {unit},"
                   f" ours/peer {ratio:.3g} (median of {runs} pairs)\n")
  return ratio
