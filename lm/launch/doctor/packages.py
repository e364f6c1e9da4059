"""Python and the installed packages, held against what is required of them."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import email.parser
import pathlib
import re
import sys

from lm.launch.doctor.finding import Finding
from lm.launch.doctor.finding import Status

OURS = "deliberate-lm"
_PYTHON = (3, 11)
# Of each group one may be installed: they write into the same folders.
_RIVALS = (
    ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tf-nightly",
     "tf-nightly-cpu"),
    ("libtpu", "libtpu-nightly"),
    ("jax-cuda13-plugin", "jax-cuda12-plugin"),
    ("flax", "flax-nightly"),
    ("orbax-checkpoint", "orbax-checkpoint-nightly"),
    ("seqio", "seqio-nightly"),
)


@dataclasses.dataclass(frozen=True)
class Package:
  """An installed distribution.

  Attributes:
    name: in lower case with dashes.
    version: as it says.
    requires: lines such as "jaxlib>=0.10; extra == 'tpu'".
  """

  name: str
  version: str
  requires: tuple[str, ...] = ()


def installed(
    folders: Iterable[str] | None = None,
) -> Mapping[str, Sequence[Package]]:
  """What is installed, by name; more than one of a name hide each other.

  Read from the files that installers leave, as importlib.metadata does: `lm`
  imports no importlib, and so a test can make up a folder.

  Args:
    folders: as on `sys.path`, which is the default.
  """
  found: dict[str, list[Package]] = {}
  for folder in dict.fromkeys(sys.path if folders is None else folders):
    root = pathlib.Path(folder or ".")
    here: dict[str, list[Package]] = {}
    for pattern in ("*.dist-info/METADATA", "*.egg-info/PKG-INFO"):
      for path in sorted(root.glob(pattern)):
        package = _read(path)
        if package is not None:
          here.setdefault(package.name, []).append(package)
    for name, packages in here.items():
      # A later folder is merely hidden (Colab, system packages): no conflict.
      found.setdefault(name, packages)
  return found


def _read(path: pathlib.Path) -> Package | None:
  try:
    head = path.read_text(encoding="utf-8", errors="replace")
  except OSError:
    return None
  fields = email.parser.HeaderParser().parsestr(head.partition("\n\n")[0])
  if not fields["Name"] or not fields["Version"]:
    return None
  return Package(canonical(fields["Name"]), fields["Version"],
                 tuple(fields.get_all("Requires-Dist", ())))


def canonical(name: str) -> str:
  """A package's name as all spellings of it agree on."""
  return re.sub(r"[-_.]+", "-", name).lower()


def python(version: Sequence[int] = sys.version_info) -> Finding:
  """Python itself."""
  text = ".".join(map(str, version[:3]))
  wanted = ".".join(map(str, _PYTHON))
  if tuple(version[:2]) < _PYTHON:
    return Finding(
        "python", Status.FAULT, f"Python {text}; {wanted} or newer is needed",
        f"python{wanted} -m venv ~/lm && ~/lm/bin/pip install {OURS}")
  return Finding("python", Status.OK, f"Python {text}")


def jax(found: Mapping[str, Sequence[Package]]) -> Finding:
  """jax and the jaxlib that belongs to it."""
  if "jax" not in found:
    return Finding("jax", Status.FAULT, "jax is not installed",
                   f"pip install {OURS}")
  version = found["jax"][0].version
  fix = f"pip install 'jaxlib=={version}'"
  if "jaxlib" not in found:
    return Finding("jax", Status.FAULT, f"jax {version} without jaxlib", fix)
  lib = found["jaxlib"][0].version
  if lib == version:
    return Finding("jax", Status.OK, f"jax and jaxlib {version}")
  # jax may say itself that an older jaxlib will do, though not on a TPU.
  allowed = _wanted(found["jax"][0], "jaxlib")
  bad = not allowed or any(not _fits(lib, spec) for spec in allowed)
  return Finding("jax", Status.FAULT if bad else Status.WARNING,
                 f"jax {version} with jaxlib {lib}", fix)


def libtpu(found: Mapping[str, Sequence[Package]]) -> Finding:
  """libtpu, if installed, against the one that jax[tpu] asks for."""
  if "libtpu" not in found:
    return Finding("libtpu", Status.OK,
                   "libtpu is not installed; only a TPU and `lm plan` need it")
  version = found["libtpu"][0].version
  packages = found.get("jax", ())
  wanted = _wanted(packages[0], "libtpu", extra="tpu") if packages else []
  if not wanted:
    return Finding("libtpu", Status.SKIPPED,
                   f"libtpu {version}; no jax says which it wants")
  own = packages[0].version
  if all(_fits(version, spec) for spec in wanted):
    return Finding("libtpu", Status.OK,
                   f"libtpu {version}, as jax {own} asks for")
  return Finding("libtpu", Status.FAULT, (
      f"libtpu {version}, but jax {own} is made for {' and '.join(wanted)}"),
      f"pip install -U 'jax[tpu]=={own}'")


def requirements(found: Mapping[str, Sequence[Package]],
                 name: str = OURS) -> Finding:
  """What our distribution requires, its upper bounds too."""
  from packaging import requirements as requirements_lib
  if name not in found:
    return Finding("requirements", Status.WARNING, (
        f"{name} is not installed, only imported from a folder: what it"
        " requires is not known"), "pip install -e .")
  wrong, install, count = [], [], 0
  for text in found[name][0].requires:
    wanted = requirements_lib.Requirement(text)
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
      continue
    count += 1
    have = found.get(canonical(wanted.name), ())
    if have and _fits(have[0].version, str(wanted.specifier)):
      continue
    wrong.append(f"{wanted.name} {have[0].version if have else 'is missing'}"
                 f" (wanted: {wanted.specifier or 'any'})")
    install.append(f"'{wanted.name}{wanted.specifier}'")
  if wrong:
    return Finding("requirements", Status.FAULT, ", ".join(wrong),
                   f"pip install {' '.join(install)}")
  return Finding("requirements", Status.OK,
                 f"all {count} packages that {name} requires fit")


def duplicates(found: Mapping[str, Sequence[Package]]) -> Finding:
  """Packages that overwrite each other's files."""
  from packaging import version as version_lib
  wrong, remove, again = [], [], []
  for group in _RIVALS:
    both = [name for name in group if name in found]
    if len(both) > 1:
      wrong.append(" and ".join(both))
      remove += both
      again.append(f"{both[0]}=={found[both[0]][0].version}")
  for name, packages in sorted(found.items()):
    versions = {p.version: None for p in packages}
    if len(versions) > 1:
      newest = max(versions, key=version_lib.Version)
      wrong.append(f"{name} {' and '.join(versions)}")
      remove.append(name)
      again.append(f"{name}=={newest}")
  if wrong:
    # What they share goes with either, so the one to keep is put back.
    return Finding(
        "duplicates", Status.FAULT, f"in each other's way: {'; '.join(wrong)}",
        f"pip uninstall -y {' '.join(remove)} && pip install --no-deps"
        f" --force-reinstall {' '.join(again)}")
  return Finding("duplicates", Status.OK, "no packages in each other's way")


def _wanted(package: Package, name: str, extra: str = "") -> list[str]:
  """Version specifiers that a package, with an extra, has for another."""
  from packaging import requirements as requirements_lib
  parsed = map(requirements_lib.Requirement, package.requires)
  return [str(r.specifier) for r in parsed if canonical(r.name) == name
          and (r.marker is None or r.marker.evaluate({"extra": extra}))]


def _fits(version: str, specifier: str) -> bool:
  from packaging import specifiers
  return specifiers.SpecifierSet(specifier).contains(version, prereleases=True)
