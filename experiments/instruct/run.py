"""Instruction tuning: a pre-trained model learns to answer.

    python -m experiments.instruct.run --config=configs/instruct/tiny.py
        --workdir=runs/instruct/tiny --config.init=runs/pretrain/tiny

It goes on from the checkpoint `init` and learns the assistant's turns of
dialogues: games with worked answers, questions about Python's documentation,
small talk. Before and after, held-out questions are answered greedily and
graded, and the held-out loss on the assistant's tokens is measured.
"""

import pathlib

from lm import model
from lm import objectives
from lm import paths
from lm import train
from lm.data import mixture
from lm.evals import instructions
from lm.launch import main
from lm.launch import stage


def run(config, workdir: pathlib.Path, mesh) -> None:
  del mesh  # It is set.
  config = config.to_dict()
  stage.check(config, own=("init", "z_loss"),
              evaluate=("every", "batches", "questions", "max_tokens"))
  before = stage.init_from(config["init"])
  vocab, length = before.vocab, config["length"]
  specs = config["data"]["sources"]
  folder = paths.path(config["data"]["folder"] or workdir / "data")

  def sources(split):
    folders = stage.first_alone(lambda: mixture.write(
        specs, vocab, folder, form="examples", split=split, length=length))
    return mixture.sources(
        folders, form="examples", length=length, batch=config["batch"],
        seed=config["seed"], **stage.hosts())

  made = program(config, before.config)
  stage.Stage(
      name="instruct", workdir=workdir, config=config, program=made,
      vocab=vocab, source=mixture.mixed(specs, sources("train")),
      evaluate=evaluation(made.model, vocab, specs, sources("validation"),
                          **config["evaluate"]),
      params=lambda: before.params, before=True,
  ).fit()


def program(config, before: model.ModelConfig | None = None) -> stage.Program:
  """The model, which is that of `config.init`, and its loss."""
  net = model.LanguageModel(stage.check_length(
      before or stage.base_model(config["init"]), config["length"]))
  return stage.Program(net, objectives.next_token(
      stage.apply_of(net), z_loss=config["z_loss"]))


def evaluation(net: model.LanguageModel, vocab, specs, sources, *, every: int,
               batches: int, questions: int, max_tokens: int):
  """Held-out loss on the assistant's tokens, and graded answers."""
  del every
  loss = train.bits_per_byte(
      stage.apply_of(net), mixture.once(sources.values(), batches=batches),
      train.token_bytes(vocab))
  groups = {
      name: (instructions.GRADES.get(specs[name]["kind"],
                                     instructions.grade_text),
             [row["messages"] for row in mixture.held_out(
                 name, specs[name], vocab, count=questions)])
      for name in sources
      if questions and specs[name]["kind"] != "game24_value"}
  graded = instructions.evaluation(net, vocab, groups, max_tokens=max_tokens)
  if not groups:  # Off, as on several hosts: decoding is for one.
    return loss
  return lambda params: {**loss(params), **graded(params)}


if __name__ == "__main__":
  main.main(run, program)
