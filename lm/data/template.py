"""Chat templates in Jinja, as models bring them: foreign code, kept in bounds.

A template renders in a sandbox that reaches no attribute of Python, for a few
seconds at most, and to a bounded length. It may use what Hugging Face's may:
`raise_exception`, `strftime_now`, `tojson`, break and continue.
"""

from collections.abc import Mapping, Sequence
import datetime
import functools
import json
import re
import threading
import time
from typing import Any

from lm.types import UserError

_MAX_TEMPLATE = 1 << 20  # Characters.
_MAX_TEXT = 1 << 24  # Characters, of what is rendered and of any part of it.
_MAX_ITEMS = 100_000  # Of a list with all that is in it, counted by its paths.
_MAX_SECONDS = 5.0
_NO_METHODS = ("translate", "format_map")
_NO_FILTERS = ("wordwrap", "urlize", "pprint", "xmlattr")
_clock = threading.local()


class _Refused(Exception):
  """What the template itself says by `raise_exception`."""


class _TooMuch(Exception):
  """A bound is passed."""


def render(
    template: str, messages: Sequence[Mapping[str, Any]], *, bos: str | None,
    eos: str | None, add_generation_prompt: bool = False,
) -> str:
  """The text of a dialogue.

  Args:
    template: Jinja.
    messages: with role and content.
    bos: the text of the token that begins a text; None: there is none.
    eos: the text of the token that ends one.
    add_generation_prompt: whether to go on to where the assistant writes.

  Raises:
    UserError: the template is too large, does not compile, reaches out of the
      sandbox, raises, does not end, or writes too much.
  """
  try:
    _clock.end = time.monotonic() + _MAX_SECONDS
    compiled = _compiled(template)
    given = {"bos_token": bos, "eos_token": eos}
    parts, size = [], 0
    for part in compiled.generate(
        messages=[{k: v for k, v in m.items() if v is not None}
                  for m in messages],
        tools=None, documents=None,
        add_generation_prompt=add_generation_prompt,
        **{k: v for k, v in given.items() if v is not None}):
      parts.append(part)
      size += len(part)
      _bounded(size)
    return "".join(parts)
  except UserError:
    raise
  except _Refused as e:
    raise UserError(f"the chat template refuses the dialogue: {_line(e)}"
                    ) from e
  except Exception as e:  # Any fault of a foreign program.
    raise UserError(f"the chat template cannot be rendered: {_line(e)}") from e


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
  if not isinstance(template, str):
    raise UserError("the chat template is not a text")
  if len(template) > _MAX_TEMPLATE:
    raise UserError(f"the chat template has {len(template)} characters: more"
                    f" than {_MAX_TEMPLATE} are refused")
  try:
    return _environment().from_string(template)
  except Exception as e:  # Syntax, or deeper than Python's stack.
    raise UserError(f"the chat template does not compile: {_line(e)}") from e


@functools.cache
def _environment() -> Any:
  """The sandbox, with loops that look at the clock."""
  from jinja2 import ext, nodes, sandbox, visitor

  class Bounds(visitor.NodeTransformer):
    """Puts a look at the clock into all that may run again and again."""

    def _ticking(self, node):
      self.generic_visit(node)
      tick = nodes.ExprStmt(nodes.Call(
          nodes.Name("__tick", "load"), [], [], None, None))
      node.body.insert(0, tick.set_lineno(node.lineno))
      return node

    visit_For = visit_Macro = visit_CallBlock = _ticking

    def _weighing(self, node):
      self.generic_visit(node)
      if getattr(node, "ctx", "load") != "load":  # What is assigned to.
        return node
      return nodes.Call(nodes.Name("__weighed", "load"), [node], [], None,
                        None).set_lineno(node.lineno)

    visit_List = visit_Tuple = visit_Dict = _weighing

    def visit_Concat(self, node):
      self.generic_visit(node)
      return nodes.Call(nodes.Name("__concat", "load"), node.nodes, [], None,
                        None).set_lineno(node.lineno)

  class Generation(ext.Extension):
    """`{% generation %}`: marks what an assistant writes; only its body."""

    tags = {"generation"}

    def parse(self, parser):
      next(parser.stream)
      return parser.parse_statements(("name:endgeneration",), drop_needle=True)

  class Environment(sandbox.ImmutableSandboxedEnvironment):
    """A sandbox whose sums and products of texts are bounded, too."""

    intercepted_binops = frozenset(_OPERATORS)

    def _parse(self, source, name, filename):
      tree = super()._parse(source, name, filename)
      return Bounds().visit(tree)

    def call_binop(self, context, operator, left, right):
      _tick()
      _bounded(_OPERATORS[operator](left, right))
      return _weighed(super().call_binop(context, operator, left, right))

    def call(self, context, obj, /, *args, **kwargs):
      _tick()
      text = getattr(obj, "__self__", None)
      if isinstance(text, str) and obj.__name__ in _NO_METHODS:
        raise _TooMuch(f"{obj.__name__} may make a text of any length")
      if isinstance(text, str) and obj.__name__ in _SIZES:
        if obj.__name__ == "join":
          args = (list(*args),)
          _bounded(_join_size(args[0], text))
        else:
          _bounded(_SIZES[obj.__name__](text, *args, **kwargs))
      return _weighed(super().call(context, obj, *args, **kwargs))

    def unsafe_undefined(self, obj, attribute):
      # Jinja would write nothing in its place, and go on.
      raise sandbox.SecurityError(
          f"access to {attribute!r} of a {type(obj).__name__} is unsafe")

    def wrap_str_format(self, value):
      wrapped = super().wrap_str_format(value)
      if wrapped is not None:
        _bounded(_format_size(value.__self__))
      return wrapped

  env = Environment(trim_blocks=True, lstrip_blocks=True,
                    extensions=[Generation, ext.loopcontrols])
  for name in ("replace", "center", "indent", "format", "join", "batch",
               "slice"):
    env.filters[name] = _sized(env.filters[name], _SIZES[name])
  env.filters["tojson"] = _tojson
  env.globals.update(raise_exception=_raise, strftime_now=_strftime,
                     __tick=_tick, __concat=_concat, __weighed=_weighed)
  env.globals.pop("lipsum", None)
  for name in _NO_FILTERS:
    env.filters.pop(name)
  return env


def _sized(function: Any, size: Any) -> Any:
  """A filter that looks first at how much it would make."""

  @functools.wraps(function)
  def wrapped(*args, **kwargs):
    _tick()
    # Some of Jinja's own take the environment as their first argument.
    own = 1 if hasattr(function, "jinja_pass_arg") else 0
    value = args[own]
    if size is _join_size:
      value = value if isinstance(value, str) else list(value)
    _bounded(size(value, *args[own + 1:], **kwargs))
    return function(*args[:own], value, *args[own + 1:], **kwargs)

  return wrapped


def _product(left: Any, right: Any) -> int:
  for value, times in ((left, right), (right, left)):
    if isinstance(times, int) and hasattr(value, "__len__"):
      return len(value) * times
  return _bits(left) + _bits(right)


def _bits(value: Any) -> int:
  return value.bit_length() if isinstance(value, int) else 0


def _format_size(text: Any, *unused: Any, **also_unused: Any) -> int:
  # Widths of many digits, or out of other values, may be of any size.
  del unused, also_unused
  wild = re.search(r"\d{4}|\{[^}]*\{|%[^a-zA-Z%]*\*", str(text))
  return _MAX_TEXT + 1 if wild else 0


def _replace_size(text: Any, old: str, new: str, *count: Any, **kw: Any) -> int:
  del count, kw
  text = str(text)
  return len(text) + text.count(str(old)) * len(str(new))


def _indent_size(text: Any, width: Any = 4, *flags: Any, **kw: Any) -> int:
  del flags, kw
  one = width if isinstance(width, int) else len(str(width))
  return len(text) + (str(text).count("\n") + 1) * one


def _join_size(values: Any, d: Any = "", attribute: Any = None) -> int:
  del attribute
  return len(str(d)) * len(values) + sum(
      len(v) for v in values if isinstance(v, str))


def _width(value: Any, width: int = 80, *fill: Any, **kw: Any) -> int:
  del value, fill, kw
  return width


_OPERATORS = {
    "+": lambda a, b: sum(len(x) for x in (a, b) if hasattr(x, "__len__")),
    "*": _product,
    "**": lambda a, b: _bits(a) * b if isinstance(b, int) else 0,
    "%": lambda a, b: _format_size(a) if isinstance(a, str) else 0,
}
# By the names of filters and of the methods of texts.
_SIZES = {
    "replace": _replace_size, "center": _width, "indent": _indent_size,
    "format": _format_size, "join": _join_size,
    "batch": _width, "slice": _width, "ljust": _width, "rjust": _width,
    "zfill": _width, "expandtabs": lambda text, tab=8: len(text) * tab,
}


def _tick() -> str:
  if time.monotonic() > _clock.end:
    raise _TooMuch(f"it is not done after {_MAX_SECONDS:g} seconds")
  return ""


def _bounded(size: int) -> None:
  if size > _MAX_TEXT:
    raise _TooMuch(f"it makes a text of more than {_MAX_TEXT} characters")


def _weighed(value: Any) -> Any:
  """The value, unless printing or comparing it might take for ever.

  A list may hold another one twice, which holds a third one twice, and so on.
  """
  items, size, todo = 0, 0, [value]
  while todo:
    x = todo.pop()
    items += 1
    if isinstance(x, str):
      size += len(x)
    elif isinstance(x, Mapping):
      todo += [y for pair in x.items() for y in pair]
    elif isinstance(x, (list, tuple, set, frozenset)):
      todo += x
    else:  # Jinja's namespace has a dict of its own; others have none.
      todo += getattr(x, "_Namespace__attrs", {}).values()
    if items + len(todo) > _MAX_ITEMS:
      raise _TooMuch(f"it makes a list of more than {_MAX_ITEMS} things")
    _bounded(size if x is not value else 0)
  return value


def _concat(*parts: Any) -> str:
  _tick()
  texts = [str(p) for p in parts]
  _bounded(sum(map(len, texts)))
  return "".join(texts)


def _raise(message: Any) -> None:
  raise _Refused(message)


def _strftime(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None,
            separators: Any = None, sort_keys: bool = False) -> str:
  if isinstance(indent, int):
    _bounded(indent * 10_000)
  # Jinja's own would write <, > and & of a text in another way.
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent,
                    separators=separators, sort_keys=sort_keys)


def _line(error: BaseException) -> str:
  return " ".join(str(error).split())[:200] or type(error).__name__
