"""Several processes share work and agree on what came out.

Results go through the key-value store of JAX's coordination service, not
through collectives, so that the thread that saves may use this while a step
runs. All processes call the same functions with the same names in the same
order. With one process nothing is exchanged.
"""

from collections import Counter
from collections.abc import Callable
import json
from typing import Any

import jax

from lm.types import UserError

_TIMEOUT = 3600  # Seconds; hashing a share of a large checkpoint takes minutes.
_calls: Counter[str] = Counter()


class Lost(RuntimeError):
  """Another process did not do its part."""


def share() -> tuple[int, int]:
  """Which part of the work is this process's: (index, count)."""
  return jax.process_index(), jax.process_count()


def everywhere(name: str, work: Callable[[], Any]) -> list[Any]:
  """Each process does its part; all get all results, in order.

  Args:
    name: of the exchange.
    work: returns JSON.

  Raises:
    UserError, OSError: on every process, if the work failed on one.
    Lost: another process is not there any more.
  """
  index, count = share()
  if count == 1:
    return [work()]
  where, before = _place(name)
  answers, error = [], _tell(f"{where}/{index}", work)
  for i in range(count):
    answers.append(_hear(f"{where}/{i}", i))
  if before:  # All have read the last round, for they began this one.
    _client().key_value_delete(f"{before}/{index}")
  return [_result(answer, i, error if i == index else None)
          for i, answer in enumerate(answers)]


def first(name: str, work: Callable[[], Any]) -> Any:
  """Process 0 does it; all get its result; arguments as `everywhere`."""
  index, count = share()
  if count == 1:
    return work()
  # All wait for all here, so that no one reads an answer that is gone.
  return everywhere(name, work if index == 0 else lambda: None)[0]


def _place(name: str) -> tuple[str, str]:
  """Where this round of an exchange and the round before lie."""
  _calls[name] += 1
  number = _calls[name]
  return (f"lm/{name}/{number}", f"lm/{name}/{number - 1}"
          if number > 1 else "")


def _tell(key: str, work: Callable[[], Any]) -> BaseException | None:
  """Does the work and publishes its result or its error."""
  error = None
  try:
    answer = {"result": work()}
  except Exception as e:  # Raised again below, on all processes alike.
    error, text = e, " ".join(str(e).split()) or type(e).__name__
    answer = {"error": text[:2000], "user": isinstance(e, UserError)}
  _client().key_value_set(key, json.dumps(answer))
  return error


def _hear(key: str, index: int) -> dict[str, Any]:
  try:
    return json.loads(
        _client().blocking_key_value_get(key, _TIMEOUT * 1000))
  except jax.errors.JaxRuntimeError as e:
    raise Lost(f"process {index} did not finish its part of {key}:"
               f" {' '.join(str(e).split())[:200]}") from e


def _result(answer: dict[str, Any], index: int,
            error: BaseException | None) -> Any:
  """What a process answered; its error is everyone's."""
  if error is not None:
    raise error
  if "error" in answer:
    if answer["user"]:
      raise UserError(answer["error"])
    raise OSError(f"process {index}: {answer['error']}")
  return answer["result"]


def _client() -> Any:
  from jax._src import distributed
  client = distributed.global_state.client
  assert client is not None, "several processes without jax.distributed"
  return client
