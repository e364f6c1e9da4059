"""Numbers as sums of their digits."""

import jax
import numpy as np

from lm.model import numerals

PIECES = ["\x00", "7", " 7", "43", " 43", " 47", " 13", "x 3", "\u0663", " 143"]
TABLE = jax.random.normal(jax.random.key(0), (12, 4096))


def test_numbers_that_share_a_digit_at_its_place_are_alike():
  table = np.asarray(numerals.from_digits(TABLE, PIECES, jax.random.key(1)))
  row = {p: table[i] for i, p in enumerate(PIECES)}
  alike = lambda a, b: float(np.corrcoef(row[a], row[b])[0, 1])  # noqa: E731
  assert alike(" 43", "43") > 0.85  # Less what is each one's own.
  assert alike(" 43", " 143") > 0.5 and alike(" 43", " 47") > 0.5
  assert alike(" 43", " 13") > 0.5
  assert alike(" 47", " 13") < 0.45  # Only a hundreds' 0 in common.
  assert abs(alike(" 7", "x 3")) < 0.1


def test_all_else_stays_as_it_was():
  table = np.asarray(numerals.from_digits(TABLE, PIECES, jax.random.key(1)))
  numbers = [1, 2, 3, 4, 5, 6, 9]
  others = [i for i in range(12) if i not in numbers]
  np.testing.assert_array_equal(table[others], np.asarray(TABLE)[others])
  assert (table[numbers] != np.asarray(TABLE)[numbers]).all()
  np.testing.assert_allclose(table[numbers].std(), 1.05, atol=0.1)


def test_a_vocabulary_without_numbers_is_left_alone():
  pieces = [p for p in PIECES if not p.strip().isdecimal()]
  table = numerals.from_digits(TABLE, pieces, jax.random.key(1))
  np.testing.assert_array_equal(table, TABLE)
