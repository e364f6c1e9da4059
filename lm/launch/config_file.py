"""Config files: loading one by its path, and naming its fields."""

from collections.abc import Iterable
import difflib
import pathlib

from absl import flags
import ml_collections
from ml_collections import config_flags

from lm.types import UserError


def load(path: str | pathlib.Path) -> ml_collections.ConfigDict:
  """What `get_config()` of the file returns, locked.

  Raises:
    UserError: there is no such file, or it returns something else.
  """
  if not pathlib.Path(str(path).split(":")[0]).is_file():
    raise UserError(f"no such config file: {path}")
  values = flags.FlagValues()
  argv = ["lm", f"--config={path}"]
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  values(argv)
  if not isinstance(values.config, ml_collections.ConfigDict):
    raise UserError(f"{path}: get_config() must return a ConfigDict, not"
                    f" {type(values.config).__name__}")
  return values.config


def fields(config: ml_collections.ConfigDict, prefix: str = "") -> dict:
  """Every node and leaf of a config by its dotted name."""
  result = {}
  for key in config:
    value = config.get(key)
    result[prefix + key] = value
    if isinstance(value, ml_collections.ConfigDict):
      result.update(fields(value, f"{prefix}{key}."))
  return result


def nearest(name: str, known: Iterable[str]) -> str:
  """A hint: the known name nearest to `name`, or else what there is."""
  known = list(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  if close:
    return f"did you mean {close[0]!r}?"
  return "known: " + ", ".join(sorted(known)[:12])
