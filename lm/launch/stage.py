"""What the training stages share: from a config's plain fields to `fit`.

A stage's `run.py` says what is its own, its data, its loss and its evaluation;
everything here is the same for all. No ConfigDict comes this far: `run.py`
passes plain dicts and numbers.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import inspect
import json
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils

from lm import model as model_lib
from lm import objectives
from lm import optim
from lm import paths
from lm import train
from lm.data import vocab as vocab_lib
from lm.launch import config_file
from lm.launch import events
from lm.launch import watch
from lm.train import agree
from lm.train import hooks as hooks_lib
from lm.types import Batch, Output, Params, TrainState, UserError

# Of every stage's config; an ablation's config has some of its own besides.
FIELDS = ("seed", "steps", "batch", "length", "microbatches", "mesh",
          "optimizer", "compiler_options", "data", "log_every", "checkpoint",
          "evaluate")
ABLATION_FIELDS = ("experiment", "metric", "expect")
PLAN_FIELD = "plan"  # Of a pod's config: what it is planned for.
RESULT = "result.json"
VOCAB = "vocab.model"


def check(
    config: Mapping[str, Any], *, own: Iterable[str] = (),
    evaluate: Iterable[str] = ("every",),
) -> None:
  """Refuses a config with unknown or missing fields.

  Args:
    config: the whole of it, as a dict.
    own: the stage's fields besides `FIELDS`.
    evaluate: the fields of `config.evaluate`.

  Raises:
    UserError: the first that is unknown (with the nearest known) or missing;
      an optimizer that cannot be built.
  """
  ours = [k for k in config if k not in (*ABLATION_FIELDS, PLAN_FIELD)]
  check_fields("config", ours, (*FIELDS, *own))
  check_fields("config.data", config["data"], ("folder", "sources"))
  check_fields("config.evaluate", config["evaluate"], tuple(evaluate))
  check_fields("config.checkpoint", config["checkpoint"],
         ("every", "keep_last", "keep_best"))
  optimizer(config["optimizer"], steps=config["steps"])


def check_fields(
    where: str, found: Iterable[str], fields: tuple[str, ...]
) -> None:
  """Refuses (UserError) a field of `where` that is unknown or missing."""
  for key in found:
    if key not in fields:
      raise UserError(
          f"{where} has no field {key!r}: {config_file.nearest(key, fields)}")
  for key in fields:
    if key not in found:
      raise UserError(f"{where}.{key} is missing")


def call(function: Callable[..., Any], *args: Any, where: str,
         **fields: Any) -> Any:
  """`function(*args, **fields)`; an unknown or missing field is a UserError."""
  signature = inspect.signature(function)
  known = list(signature.parameters)[len(args):]
  for key in fields:
    if key not in known:
      raise UserError(
          f"{where} has no field {key!r}: {config_file.nearest(key, known)}")
  try:
    signature.bind(*args, **fields)
  except TypeError as e:
    raise UserError(f"{where}: {e}") from e
  return function(*args, **fields)


def by_the_dial(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with a batch and a learning rate of 0 set by `model.depth`."""
  config = {**config, "optimizer": dict(config["optimizer"])}
  depth = config["model"].get("depth")
  if depth:
    recipe = model_lib.recipe(depth)
    config["batch"] = config["batch"] or max(
        1, round(recipe["batch_tokens"] / config["length"]))
    rate = config["optimizer"].get("learning_rate") or recipe["learning_rate"]
    config["optimizer"]["learning_rate"] = rate
  return config


def model_config(
    fields: Mapping[str, Any], vocab_size: int, *, length: int = 1
) -> model_lib.ModelConfig:
  """A model by its named size, by the depth dial, or field by field.

  Args:
    fields: {"size": name, ...}, {"depth": layers, ...} or the fields of
      `ModelConfig`; the vocabulary's size need not be among them.
    vocab_size: pieces of the vocabulary.
    length: of the rows that it will be trained on.

  Raises:
    UserError: an unknown field, another vocabulary size, too short a context.
  """
  fields = dict(fields)
  size, depth = fields.pop("size", None), fields.pop("depth", None)
  if fields.setdefault("vocab_size", vocab_size) != vocab_size:
    raise UserError(
        f"model.vocab_size is {fields['vocab_size']} but the vocabulary has"
        f" {vocab_size} pieces: leave the field out, or change vocab.size")
  if size and depth:
    raise UserError("model.size and model.depth exclude each other")
  if size:
    config = model_lib.size(size, **fields)
  elif depth:
    config = model_lib.depth(depth, **fields)
  else:
    config = model_lib.ModelConfig.from_dict(fields)
  return check_length(config, length)


def check_length(
    config: model_lib.ModelConfig, length: int
) -> model_lib.ModelConfig:
  """The config; a UserError if rows of `length` do not fit its context."""
  if length > config.max_length:
    raise UserError(
        f"rows of {length} tokens do not fit the model's context of"
        f" {config.max_length}: lower config.length, or raise"
        " model.max_length before pre-training")
  return config


def optimizer(fields: Mapping[str, Any], *, steps: int):
  """AdamW or Muon under a schedule, from plain fields.

  Args:
    fields: `name` ("adamw" or "muon"), `learning_rate`, `schedule`
      ("constant", "cosine" or "wsd"), `rules` (dicts of `optim.Rule`), and any
      argument of these functions of `lm.optim`.
    steps: of the run.

  Raises:
    UserError: an unknown name or field.
  """
  fields = dict(fields)
  schedules: dict[str, Callable[..., Any]] = {
      "constant": optim.constant, "cosine": optim.cosine, "wsd": optim.wsd}
  chains = {"adamw": optim.adamw, "muon": optim.muon}
  schedule = _pick(schedules, fields.pop("schedule", "cosine"),
                   "optimizer.schedule")
  chain = _pick(chains, fields.pop("name", "adamw"), "optimizer.name")
  rules = [optim.Rule(**dict(r)) for r in fields.pop("rules", ())]
  # What any schedule knows is accepted, so that an ablation may change the
  # schedule's name alone.
  timing = {k for f in schedules.values() for k in _parameters(f)[1:]}
  timing -= {"steps"}
  known = {*_parameters(chain)[1:], *timing, "learning_rate", "schedule",
           "name"}
  for key in fields:
    if key not in known:
      raise UserError(f"optimizer has no field {key!r}:"
                      f" {config_file.nearest(key, sorted(known))}")
  if "learning_rate" not in fields:
    raise UserError("optimizer.learning_rate is missing")
  own = {k: fields[k] for k in _parameters(schedule)[1:] if k in fields}
  if "steps" in _parameters(schedule):
    own["steps"] = steps
  rest = {k: v for k, v in fields.items()
          if k not in timing and k != "learning_rate"}
  return chain(schedule(fields["learning_rate"], **own), rules=rules, **rest)


def compiler_options(text: str) -> dict[str, str]:
  """Flags of the TPU compiler from "NAME=VALUE NAME=VALUE".

  Raises:
    UserError: a word of another form.
  """
  pairs = [word.partition("=") for word in text.split()]
  for name, equals, value in pairs:
    if not (name and equals and value):
      raise UserError(f"config.compiler_options: {name + equals + value!r} is"
                      " not of the form NAME=VALUE")
  return {name: value for name, _, value in pairs}


def _parameters(function: Callable[..., Any]) -> list[str]:
  return list(inspect.signature(function).parameters)


def _pick(functions: Mapping[str, Any], name: str, where: str) -> Any:
  if name not in functions:
    raise UserError(
        f"{where}={name!r}: {config_file.nearest(name, functions)}")
  return functions[name]


def apply_of(
    model: model_lib.LanguageModel
) -> Callable[[Params, Batch], Output]:
  """The one forward pass, as objectives and evaluations take it."""
  def apply(params, batch):
    return model.forward(
        params, batch.tokens_BT, positions_BT=batch.positions_BT,
        segments_BT=batch.segments_BT, targets_BT=batch.targets_BT)
  return apply


def hosts() -> dict[str, int]:
  """Which part of the global batch this process reads."""
  return {"process_index": jax.process_index(),
          "process_count": jax.process_count()}


def first_alone(work: Callable[[], Any]) -> Any:
  """`work()` on process 0, then on the others, which may find it done."""
  if jax.process_index() == 0:
    found = work()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("first_alone")
  if jax.process_index() != 0:
    found = work()
  return found


def init_from(folder: str, *, which: str = "last") -> train.Loaded:
  """The checkpoint of the stage before.

  Raises:
    UserError: none is named, there is none, or it is damaged or without its
      vocabulary.
  """
  loaded = train.load(_before(folder), which=which)
  if loaded.vocab is None:
    raise UserError(f"{loaded.path} holds no vocabulary: it is of another"
                    " program, or was saved without")
  if loaded.vocab.size > loaded.config.vocab_size:
    raise UserError(
        f"{loaded.path}: its vocabulary of {loaded.vocab.size} pieces is not"
        f" the model's, which has {loaded.config.vocab_size}")
  return loaded


def _before(folder: str) -> str:
  if not folder:
    raise UserError("config.init is empty: name the --workdir of the stage"
                    " before, as in --config.init=runs/pretrain")
  if not paths.is_dir(paths.path(folder)):
    raise UserError(f"config.init={folder}: no such folder; run the stage"
                    " before, or name its --workdir")
  return folder


def base_model(folder: str, **changes: Any) -> model_lib.ModelConfig:
  """The model of the stage before, from its checkpoint's description alone."""
  _, description = train.find(_before(folder))
  fields = description["model"] | changes
  return model_lib.ModelConfig.from_dict(fields)


@dataclasses.dataclass(frozen=True)
class Program:
  """What a training step is made of: a stage without its data.

  Attributes:
    model: the model.
    loss: of `lm.objectives`.
    extra: fields of `Batch.extra` that the loss reads, float32 [B, T].
  """

  model: model_lib.LanguageModel
  loss: objectives.LossFn
  extra: tuple[str, ...] = ()

  def optimizer(self, config: Mapping[str, Any]):
    """The optimizer that a stage's config asks for."""
    return optimizer(config["optimizer"], steps=config["steps"])

  def step(self, config: Mapping[str, Any]) -> train.Step:
    """The compiled step of a stage's config, with its compiler options."""
    return train.make_step(
        self.loss, self.optimizer(config), seed=config["seed"],
        microbatches=config["microbatches"],
        compiler_options=compiler_options(config["compiler_options"]))


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training, ready to run.

  Attributes:
    name: of the stage.
    workdir: of the run.
    config: the whole config as a dict, for the record.
    program: its model and loss.
    vocab: the model's vocabulary.
    source: where batches come from.
    evaluate: params -> numbers, held out.
    best: the metric of `evaluate` that decides which checkpoint is best.
    largest: whether the largest of it is.
    params: called for parameters to begin with; None is fresh ones.
    before: also evaluate before the first step.
  """

  name: str
  workdir: pathlib.Path
  config: Mapping[str, Any]
  program: Program
  vocab: vocab_lib.Vocab
  source: train.Source
  evaluate: Callable[[Params], Mapping[str, float]]
  best: str = "loss"
  largest: bool = False
  params: Callable[[], Params] | None = None
  before: bool = False

  def fit(self) -> TrainState:
    """Trains, or goes on from the newest checkpoint, and writes the result.

    `workdir/result.json` gets the last evaluation as `{name: number}`, and
    the one before training as `before/name`.
    """
    c = self.config
    checkpointer = self._checkpointer()
    state = train.begin(
        checkpointer, self.source, model=self.program.model,
        tx=self.program.optimizer(c), key=jax.random.key(c["seed"]),
        params=self.params)
    state = train.fit(state, self.source, self.program.step(c), c["steps"],
                      self._hooks(checkpointer))
    self._write_result(state)
    return state

  def _checkpointer(self) -> train.Checkpointer:
    vocab_file = self.workdir / VOCAB
    if jax.process_index() == 0 and not paths.is_file(vocab_file):
      self.vocab.save(vocab_file)
    return call(
        train.Checkpointer, self.workdir, where="checkpoint",
        vocab_file=vocab_file, best=f"eval/{self.best}", largest=self.largest,
        description={
            "stage": self.name, "model": self.program.model.config.to_dict(),
            "vocab": {"hash": self.vocab.hash, "size": self.vocab.size},
            "config": dict(self.config)},
        **{k: v for k, v in self.config["checkpoint"].items() if k != "every"})

  def _hooks(self, checkpointer: train.Checkpointer) -> list[train.Hook]:
    c, every = self.config, self.config["log_every"]
    flops = self.program.model.config.flops_per_token(
        c["length"] / 2, training=True)
    return [
        train.Progress(flops_per_token=flops, every=every, title=self.name),
        train.Goodput(self.workdir, every=every, saved=c["checkpoint"]["every"],
                      restarts=max(0, events.starts(self.workdir) - 1)),
        train.JsonLines(self.workdir, every=max(1, every // 5)),
        train.TensorBoard(self.workdir, every=max(1, every // 5)),
        train.StopIfDiverged(checkpointer),
        train.Evaluate(self.evaluate, every=c["evaluate"]["every"],
                       first=self.before),
        train.Checkpoint(checkpointer, every=c["checkpoint"]["every"]),
        train.TraceOnDemand(self.workdir, every=every),
        train.StopOnSignal(), watch.Beat()]

  def _write_result(self, state: TrainState) -> None:
    """From the metrics on disk, so a run killed after its end has one too."""
    steps = self.config["steps"]
    # One host's reading, for an evaluation is done by all or none.
    rows = agree.first("result", lambda: hooks_lib.read_metrics(self.workdir))
    at = {step: {k.removeprefix("eval/"): v for row in rows
                 if row["step"] == step for k, v in row.items()
                 if k.startswith("eval/")} for step in (0, steps)}
    if not at[steps]:
      at[steps] = {k: float(v) for k, v in self.evaluate(state.params).items()}
    result = {**at[steps], "steps": steps,
              "parameters": self.program.model.config.num_params}
    if self.before:
      result |= {f"before/{k}": v for k, v in at[0].items()}
    if jax.process_index() == 0:
      paths.write_bytes(self.workdir / RESULT,
                        f"{json.dumps(result, indent=1)}\n".encode())
