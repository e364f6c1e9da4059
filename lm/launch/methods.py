"""Search from a config's plain fields: methods by name, budgets, the writer."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from lm import search
from lm import train
from lm.data import store
from lm.launch import config_file
from lm.launch import stage
from lm.model import LanguageModel
from lm.types import UserError

# Of every config whose model writes.
SAMPLING = ("temperature", "min_p", "line_tokens", "answer_tokens", "batch")


def _tot(b: int, k: int | Sequence[int], *, merge: bool = True,
         answers: int = 1) -> search.Beam:
  """`search.tree_of_thoughts`, with what an ablation may change."""
  return search.Beam(b, search.depths(k), merge=merge, answers=answers)


MAKERS: dict[str, Callable[..., Any]] = {
    "greedy": search.greedy, "self_consistency": search.self_consistency,
    "best_of_n": search.best_of_n, "token_beam": search.token_beam,
    "tot": _tot, "whole_tree": search.whole_tree,
    "depth_first": search.depth_first, "best_first": search.best_first,
    "mcts": search.mcts, "stream": search.stream,
    "revision": search.revision,
}
CRITIC = "critic"  # The evaluator that is another checkpoint.


@dataclasses.dataclass(frozen=True)
class Method:
  """One entry of `config.methods`.

  Attributes:
    name: its key.
    kind: of `MAKERS`.
    strategy: how it thinks.
    evaluate: who judges thoughts; nobody does where there are none.
    budget: of each problem.
    label: for people.
  """
  name: str
  kind: str
  strategy: search.Strategy
  evaluate: str
  budget: search.Budget
  label: str

  @property
  def family(self) -> str:
    """Methods that differ only in how much they think."""
    return f"tot_{self.evaluate}" if self.kind == "tot" else self.kind

  @property
  def needs_values(self) -> bool:
    if isinstance(self.strategy, search.Revision):
      return self.strategy.choose == "value"
    return self.evaluate in search.OF_VALUES and self.strategy.nodes(1) > 0


def make(name: str, fields: Mapping[str, Any],
         budget: Mapping[str, Any] | None = None, *,
         where: str | None = None) -> Method:
  """The method that `config.methods.NAME` describes.

  Args:
    name: of it.
    fields: kind, evaluate, label, budget, and the arguments of its maker.
    budget: what holds where the method's own says nothing.
    where: what it is called in messages; by default as above.

  Raises:
    UserError: an unknown or missing field (the nearest known is named), or a
      value that cannot be.
  """
  where, fields = where or f"config.methods.{name}", dict(fields)
  kind, label = fields.pop("kind", None), fields.pop("label", name)
  own = fields.pop("budget", None) or {}
  if kind not in MAKERS:
    raise UserError(f"{where}.kind={kind!r}:"
                    f" {config_file.nearest(str(kind), MAKERS)}")
  evaluate = fields.pop("evaluate", None)
  strategy = _call(MAKERS[kind], where, fields)
  if evaluate is not None and not strategy.nodes(1):
    raise UserError(f"{where} has no field 'evaluate': {kind} has no thoughts"
                    " to judge")
  evaluate = evaluate or "value"
  judges = (*search.EVALUATORS, CRITIC)
  if evaluate not in judges:
    raise UserError(f"{where}.evaluate={evaluate!r}:"
                    f" {config_file.nearest(str(evaluate), judges)}")
  limits = make_budget(f"{where}.budget", {**(budget or {}), **own})
  return Method(name, kind, strategy, evaluate, limits, label)


def make_budget(where: str, limits: Mapping[str, Any]) -> search.Budget:
  """A budget by its fields; UserError for one that is unknown or no number."""
  for key, value in limits.items():
    if value is not None and (isinstance(value, bool)
                              or not isinstance(value, int | float)):
      raise UserError(f"{where}.{key}={value!r}: give a number, or leave it out"
                      " for no limit")
  return stage.call(search.Budget, where=where, **limits)


def _call(maker, where: str, fields: Mapping[str, Any]) -> search.Strategy:
  try:
    return stage.call(maker, where=where, **fields)
  except (UserError, TypeError) as e:  # Its own knows no place; a text for 1.
    if str(e).startswith(where):
      raise
    raise UserError(f"{where}: {e}") from e


def check(method: Method, problems: Sequence[Any], *, has_values: bool,
          model: str = "the model") -> None:
  """Refuses (UserError) a method that does not fit the problems or the model.

  Whether a model has learnt to write searches or revisions cannot be known.

  Args:
    method: to be tried.
    problems: that it is to solve.
    has_values: whether the model has a value head.
    model: its name, for the message.
  """
  where = f"config.methods.{method.name}"
  if method.needs_values and not has_values:
    raise UserError(
        f"{where} needs a value head, which {model} has not: train one with"
        " experiments.value, name one by config.value_init, or judge by"
        " evaluate='log_prob'")
  if not method.strategy.nodes(1):
    return
  if method.evaluate == CRITIC:
    return
  try:
    search.evaluator(method.evaluate, problems)
  except UserError as e:
    raise UserError(f"{where}: {e}") from e


def writer(loaded: train.Loaded, c: Mapping[str, Any]) -> search.Writer:
  """The model of a checkpoint, writing as the config's `SAMPLING` says."""
  return search.Writer(
      LanguageModel(loaded.config), loaded.params, loaded.vocab,
      temperature=c["temperature"], min_p=c["min_p"],
      line_tokens=c["line_tokens"], answer_tokens=c["answer_tokens"])


def own(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Marks the folder as this config's; refuses one that is another's.

  For runs that go on from what lies there and would mix two configs' work.
  """
  mark = json.dumps({k: v for k, v in config.items() if k != "mesh"})
  record = workdir / "own.config"
  if record.exists() and record.read_text(encoding="utf-8") != mark:
    raise UserError(f"{workdir} holds the work of another config: remove it, or"
                    " choose another --workdir")
  store.write_atomic(record, mark.encode())
