"""The value head: a model learns to foresee whether its lines lead to success.

    python -m experiments.value.run --config=configs/value/tiny.py
        --workdir=runs/value/tiny --config.init=runs/instruct/tiny

A scalar head is added to the checkpoint `init`; with `model` in its place both
begin from nothing, with the vocabulary of the tasks (and with `digits` numbers
begin as sums of their digits' vectors, see `lm.model.numerals`). One forward
pass trains both: the head on the outcome of every line of good and bad
attempts, the language model on the sound ones only. The measures are those of
the head's predictions on attempts at puzzles that are neither trained on nor
test games.
"""

import pathlib

import jax.numpy as jnp

from lm import model
from lm import objectives
from lm import paths
from lm import sharding
from lm import train
from lm.data import mixture
from lm.data import problems
from lm.evals import calibration
from lm.launch import main
from lm.launch import stage
from lm.types import UserError


def run(config, workdir: pathlib.Path, mesh) -> None:
  del mesh  # It is set.
  config = config.to_dict()
  fresh = "model" in config
  more = ("value_loss", "digits") if fresh else ("value_loss",)
  own = ("model" if fresh else "init", "z_loss", "value_weight",
         *(f for f in more if f in config))
  stage.check(config, own=own, evaluate=("every", "batches"))
  before = None if fresh else stage.init_from(config["init"])
  vocab = before.vocab if before else problems.vocabulary()
  specs, length = config["data"]["sources"], config["length"]
  folder = paths.path(config["data"]["folder"] or workdir / "data")

  def sources(split):
    folders = stage.first_alone(lambda: mixture.write(
        specs, vocab, folder, form="examples", split=split,
        length=length))
    return mixture.sources(
        folders, form="examples", length=length, batch=config["batch"],
        seed=config["seed"], **stage.hosts())

  made = program(config, before.config if before else None)
  begin = None
  if before:
    begin = lambda: with_scalar_head(before)
  elif config.get("digits"):
    begin = lambda: model.init_with_digits(
        made.model, vocab, config["seed"])
  held_out = mixture.once(
      [s for name, s in sources("validation").items()
       if "values" in s.extra and specs[name].get("what") != "facts"],
      batches=config["evaluate"]["batches"])
  stage.Stage(
      name="value", workdir=workdir, config=config, program=made,
      vocab=vocab, source=mixture.mixed(specs, sources("train")),
      evaluate=calibration.values(stage.apply_of(made.model), held_out),
      best="brier", params=begin,
  ).fit()


def program(config, before: model.ModelConfig | None = None) -> stage.Program:
  """The model of `config.init` (or `config.model`) with a scalar head, and the
  two losses."""
  if "model" in config:
    config_of = stage.model_config(
        config["model"], problems.vocabulary().size, length=config["length"])
  else:
    config_of = before or stage.base_model(config["init"])
  net = model.LanguageModel(stage.check_length(
      config_of.replace(scalar_head=True), config["length"]))
  return stage.Program(
      net, objectives.next_token_and_value(
          stage.apply_of(net), value_weight=config["value_weight"],
          z_loss=config["z_loss"], value_loss=_value_loss(config)),
      extra=("values_BT", "value_weights_BT"))


def _value_loss(config):
  name = config.get("value_loss", "cross_entropy")
  if name not in objectives.VALUE_LOSSES:
    raise UserError(f"config.value_loss={name!r}: use one of"
                    f" {', '.join(objectives.VALUE_LOSSES)}")
  return objectives.VALUE_LOSSES[name]


def with_scalar_head(loaded: train.Loaded):
  """Its parameters, with a scalar head that says 0 unless it has one."""
  if "value" in loaded.params:
    return loaded.params
  width = loaded.config.d_model
  return {**loaded.params,
          "value": {"value": sharding.shard(jnp.zeros(width), None),
                    "bias": sharding.shard(jnp.zeros(()))}}


if __name__ == "__main__":
  main.main(run, program)
