"""Chat templates: bounds on foreign code, and which tokens are learnt."""

import datetime

import pytest

from data import tokenizers_house as house
from lm.data import bpe
from lm.data import chat
from lm.data import template
from lm.types import UserError

_GROWS = ("{%% set ns = namespace(x='ab') %%}{%% for i in range(60) %%}"
          "{%% set ns.x = ns.x %s ns.x %%}{%% endfor %%}")


def _render(text, messages=tuple(house.TALK), **kw):
  return template.render(text, messages, **{"bos": "<s>", "eos": "</s>", **kw})


GOOD = [
    ("{{ bos_token }}|{{ eos_token }}|{{ tools }}|{{ nothing }}",
     "<s>|</s>|None|"),
    ("{% for m in messages %}\n  {{- m.role ~ loop.index }}\n{% endfor %}",
     "user1\nassistant2\nuser3\nassistant4\n"),
    ("{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
     "{% if loop.last %}{% break %}{% endif %}{{ m['role'] }},{% endfor %}",
     "user,user,"),
    ("{{ {'a': '<é&>'} | tojson }}", '{"a": "<é&>"}'),
    ("{{ {'b': [1]} | tojson(indent=1) }}", '{\n "b": [\n  1\n ]\n}'),
    ("{% generation %}a{% endgeneration %}{{ messages[0].content[:3] }}",
     "aWho"),
    ("{{ messages | map(attribute='role') | join('/') }}",
     "user/assistant/user/assistant"),
    ("{{ 'a-b'.replace('-', '+') }} {{ 'x' * 3 + 'y' }} {{ 7 % 4 }}"
     " {{ '%s=%d' % ('n', 5) }} {{ '{}'.format(2) }} {{ 2 ** 5 }}",
     "a+b xxxy 3 n=5 2 32"),
    ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ f(2) }}", "<1><2>"),
]


@pytest.mark.parametrize("text, expected", GOOD)
def test_what_templates_may_use(text, expected):
  assert _render(text) == expected


def test_flags_and_the_date():
  text = "{% if add_generation_prompt %}go{% endif %}"
  assert _render(text) == "" and _render(text, add_generation_prompt=True) == (
      "go")
  year = str(datetime.datetime.now().year)
  assert _render("{{ strftime_now('%Y') }}") == year
  assert _render("{{ bos_token is defined }}", bos=None) == "False"


_NESTS = ("{%% set ns = namespace(x=[1]) %%}{%% for i in range(40) %%}"
          "{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}")

BAD = [
    (_NESTS % "[ns.x, ns.x]", "more than 100000 things"),
    (_NESTS % "[ns.x] * 2", "more than 100000 things"),
    (_NESTS % "{'a': ns.x, 'b': (ns.x, 1)}.values()|list + [ns.x]",
     "more than 100000 things"),
    (_NESTS % "dict(a=ns.x, b=ns.x)", "more than 100000 things"),
    (_NESTS % "namespace(a=ns.x, b=ns.x)", "more than 100000 things"),
    ("{{ ('a' * 9000000) | wordwrap(1) }}", "wordwrap"),
    ("{{ ('a' * 9000000).translate({97: 'b' * 1000}) }}", "translate"),
    ("{{ ''.__class__ }}", "__class__"),
    ("{{ messages.__class__.__mro__ }}", "__class__"),
    ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    ("{{ raise_exception.__globals__ }}", "unsafe"),
    ("{{ messages.append(1) }}", "append"),
    ("{% include 'x' %}", "loader"),
    ("{% for i in range(10 ** 9) %}x{% endfor %}", "[Rr]ange"),
    ("{{ 'x' * 10 ** 12 }}", "more than"),
    ("{{ [1] * 10 ** 12 }}", "more than"),
    ("{{ 9 ** (10 ** 12) }}", "more than"),
    (_GROWS % "~", "more than"),
    (_GROWS % "+", "more than"),
    ("{{ 'a' | center(10 ** 10) }}", "more than"),
    ("{{ 'a'.ljust(10 ** 10) }}", "more than"),
    ("{{ '%1000000000d' % 1 }}", "more than"),
    ("{{ '{:1000000000}'.format(1) }}", "more than"),
    ("{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}", "more than"),
    ("{{ (['a' * 10 ** 6] * 10 ** 5) | join }}", "more than"),
    ("{{ [1] | batch(10 ** 9, 'x') | list }}", "more than"),
    ("{{ messages | tojson(indent=10 ** 9) }}", "more than"),
    ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ raise_exception('No\nsystem  role') }}",
     "refuses the dialogue: No system role"),
    ("{% for %}", "does not compile"),
    ("{{ messages", "does not compile"),
    ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "does not compile"),
    ("{{ messages.nope.nope }}", "nope"),
    ("{{ 1 / 0 }}", "division"),
    ("{{ messages[0].content + 1 }}", "cannot be rendered"),
]


@pytest.mark.parametrize("text, reason", BAD)
def test_bad_templates_are_one_line(text, reason):
  with pytest.raises(UserError, match=reason) as error:
    _render(text)
  assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_too_large_or_endless(monkeypatch):
  with pytest.raises(UserError, match="2000000 characters"):
    _render("x" * 2_000_000)
  monkeypatch.setattr(template, "_MAX_SECONDS", 0.2)
  loop = "{% for i in range(99999) %}"
  for body in (loop + loop + "{% endfor %}{% endfor %}",
               "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
               "{% endif %}{% endmacro %}{{ f(60) }}"):
    with pytest.raises(UserError, match="not done after 0.2 seconds"):
      _render(body)


def _vocab(text, **config):
  specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>",
              "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
  spec = house.byte_level(700, specials=specials)
  if text == house.LLAMA3:  # A newline is never one word with what follows.
    spec["pre_tokenizer"]["pretokenizers"][0] = {
        "type": "Split", "pattern": {"Regex": r"\s*[\r\n]+"},
        "behavior": "Isolated", "invert": False}
  eos = {house.MISTRAL: 4, house.LLAMA3: 7}.get(text, 2)
  return bpe.HuggingFaceVocab(
      spec, {"eos_ids": [eos], "bos_id": 3, "chat_template": text, **config})


LEARNT = [
    (house.CHATML, ["Nobody: é 漢.<|im_end|>", "Bye, then<|im_end|>"]),
    (house.LLAMA3, ["Nobody: é 漢.<|eot_id|>", "Bye, then<|eot_id|>"]),
    (house.MISTRAL, [" Nobody: é 漢.</s>", " Bye, then</s>"]),
    (house.QWEN3, ["Nobody: é 漢.<|im_end|>",
                   "<think>\n\n</think>\n\nBye, then<|im_end|>"]),
    (house.THINKS, ["Nobody: é 漢.<|im_end|>", "Bye, then<|im_end|>"]),
    # Without a token at the end of a turn, only the contents.
    ("{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
     "{% if add_generation_prompt %}[assistant]{% endif %}",
     ["Nobody: é 漢.", "Bye, then"]),
]


@pytest.mark.parametrize("text, learnt", LEARNT)
@pytest.mark.parametrize("tail", ["", "<|im_end|></s><|eot_id|>"])
def test_loss_on_what_the_assistant_writes(text, learnt, tail):
  vocab = _vocab(text)
  # Special tokens in contents change nothing but themselves.
  talk = [{**m, "content": m["content"].rstrip() + tail} for m in house.TALK]
  example = chat.encode(vocab, talk)
  assert vocab.decode(example["tokens"]) == bpe.bpe_spell.render(
      vocab, talk, add_generation_prompt=False)
  runs, last = [], 0.0
  for token, weight in zip(example["tokens"], example["weights"], strict=True):
    if weight and not last:
      runs.append([])
    if weight:
      runs[-1].append(token)
    last = weight
  answers = [m["content"] for m in house.TALK[1::2]]
  assert [vocab.decode(r) for r in runs] == [
      x.replace(a, a + tail) for x, a in zip(learnt, answers, strict=True)]
  specials = [t for t in example["tokens"] if t in vocab.special_ids]
  assert specials == [t for t in chat.encode(vocab, house.TALK)["tokens"]
                      if t in vocab.special_ids]


@pytest.mark.parametrize("text", [
    house.CHATML, house.LLAMA3, house.MISTRAL, house.QWEN3])
def test_ids_are_those_of_the_rendered_text(text):
  vocab = _vocab(text)
  shown = bpe.bpe_spell.render(
      vocab, house.TALK[:3], add_generation_prompt=True)
  prompt = chat.encode_prompt(vocab, house.TALK[:3])
  assert prompt == vocab.tokenizer.encode(shown, add_special_tokens=False).ids
  whole = chat.encode(vocab, house.TALK)
  assert whole["tokens"][: len(prompt)] == prompt
  assert whole["weights"][len(prompt)] == 1.0
  assert whole["weights"][len(prompt) - 1] == 0.0


def test_worked_answers_end_as_the_template_ends_turns():
  row = {"prompt": "p", "lines": ["a\n", "b"], "labels": [0.0, 1.0]}
  vocab = _vocab(house.LLAMA3, eos_ids=[0, 7])
  example = chat.encode_values(vocab, row)
  assert example["tokens"][-1] == 7  # Not <|endoftext|>, though it is first.
  assert vocab.decode(example["tokens"]).endswith("\n\na\nb<|eot_id|>")


def test_templates_that_do_not_show_what_is_learnt():
  rewrites = ("{{ messages | length }}{% for m in messages %}"
              "{{ m.content | upper }}<|im_end|>{% endfor %}")
  with pytest.raises(UserError, match="no prefix property"):
    chat.encode(_vocab(rewrites), house.TALK)
  silent = "{% for m in messages %}{{ m.role }}{% endfor %}"
  with pytest.raises(UserError, match="no tokens to learn"):
    chat.encode(_vocab(silent), house.TALK)
  system = [{"role": "system", "content": "s"}, *house.TALK]
  with pytest.raises(UserError, match="Only user and assistant roles!"):
    chat.encode(_vocab(house.MISTRAL), system)
