"""Programs of regular expressions as tables of a finite automaton.

Its states are threads of the program in the order of their priority, as in
Pike's machine, so that it takes what a backtracking one takes. It reads kinds
of characters, which a second automaton finds from the bytes of UTF-8.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from lm.types import UserError

MATCH, TAKE, SPLIT, JUMP, AHEAD, NOT_AHEAD = range(6)
# What is read besides kinds of characters: bytes of a character but the first,
# and the end of the text (in the table of bytes: what is not UTF-8).
INSIDE, END, KINDS = 62, 63, 64
_MOST_STATES = 1 << 14


@dataclasses.dataclass(frozen=True)
class Automaton:
  """Patterns, compiled.

  Attributes:
    count: of patterns; pattern i begins in state 1 + i, and none goes on from
      state 0.
    states: [states, KINDS], twice the next state, plus 1 where a match ends
      before this character.
    chars: [nodes, 256], by the next byte: the kind of the character that it
      completes, END where it cannot follow, or else KINDS + the next node.
      Node 0 is between characters.
  """

  count: int
  states: np.ndarray
  chars: np.ndarray


def states(starts: Sequence[int], ops: Sequence[tuple]) -> np.ndarray:
  """The table of states, each of which is threads that wait for a character."""
  # A first state is never come back to: no match begins inside a character.
  threads = [(), *((start,) for start in starts)]
  numbers: dict[tuple[int, ...], int] = {(): 0}
  rows = [[0] * KINDS]
  while len(rows) < len(threads):
    row = []
    for kind in range(KINDS):
      matched, following = _step(ops, threads[len(rows)], kind)
      if following not in numbers:
        numbers[following] = len(threads)
        threads.append(following)
      row.append(2 * numbers[following] + matched)
    row[INSIDE] = 2 * len(rows) if len(rows) > len(starts) else 0
    rows.append(row)
    if len(rows) > _MOST_STATES:
      raise UserError("the two-file export cannot say this tokenizer: its"
                      " patterns take too many states; export for Hugging Face"
                      " instead")
  return np.array(rows, "<u4")


def _step(ops: Sequence[tuple], threads: Sequence[int], kind: int
          ) -> tuple[bool, tuple[int, ...]]:
  """Whether a match ends before a character, and the threads after it."""
  stack, seen, following = [*reversed(threads)], set(), []
  while stack:
    pc = stack.pop()
    if pc in seen:
      continue
    seen.add(pc)
    op, to, other, bits = ops[pc]
    inside = bool(bits >> kind & 1)
    if op == MATCH:  # The threads behind have a lower priority.
      return True, tuple(following)
    if op == JUMP:
      stack.append(to)
    elif op == SPLIT:
      stack += [other, to]
    elif op == TAKE:
      following += [pc + 1] * inside
    elif inside == (op == AHEAD):
      stack.append(pc + 1)
  return False, tuple(dict.fromkeys(following))


def chars(kinds: Sequence[tuple[int, int]]) -> np.ndarray:
  """The table of UTF-8's bytes."""
  codes = np.full(0x140000, END, np.uint8)  # All that four bytes can say.
  for (first, kind), (end, _) in zip(kinds, [*kinds[1:], (0x110000, 0)]):
    codes[first:end] = kind
  codes[0xD800:0xE000] = END  # Surrogates are no characters.
  rows = [np.full(256, END, np.uint32)]
  made: dict[bytes, int] = {bytes([END]) * 64 ** n: END for n in (1, 2, 3)}

  def node(part: np.ndarray) -> int:
    """What stands for the bytes that say one of these characters."""
    if len(part) == 1:
      return int(part[0])
    if part.tobytes() not in made:
      row = np.full(256, END, np.uint32)
      row[0x80:0xC0] = [node(x) for x in part.reshape(64, -1)]
      made[part.tobytes()] = KINDS + len(rows)
      rows.append(row)
    return made[part.tobytes()]

  rows[0][:0x80] = codes[:0x80]
  for first, last, bits, least in (
      (0xC2, 0xDF, 6, 0x80), (0xE0, 0xEF, 12, 0x800),
      (0xF0, 0xF4, 18, 0x10000)):
    longer = codes.copy()
    longer[:least] = END  # A shorter form says these.
    for byte in range(first, last + 1):
      start = (byte & (0x3F >> bits // 6)) << bits
      rows[0][byte] = node(longer[start:start + (1 << bits)])
  return np.stack(rows).astype("<u4")
