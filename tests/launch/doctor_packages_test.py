"""`lm doctor` finds packages that do not fit, and names one fix."""

from collections.abc import Mapping
import pathlib

from lm.launch import doctor
from lm.launch.doctor import packages
from lm.launch.doctor.finding import Status
import pytest

JAX = ("0.10.2", "jaxlib<=0.10.2,>=0.10.1", 'libtpu==0.0.42.*; extra == "tpu"')


def fault(found: doctor.Finding, what: str, fix: str) -> None:
  assert found.status is Status.FAULT, found
  assert what in found.what and fix in found.fix, found


def install(folder: pathlib.Path, **versions) -> Mapping:
  """Made-up packages, as an installer would leave them, and as found."""
  for name, about in versions.items():
    version, *requires = about if isinstance(about, tuple) else (about,)
    path = folder / f"{name}-{version}.dist-info" / "METADATA"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join([
        "Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires), "", "Name: not this"]))
  return packages.installed([str(folder)])


def test_python():
  fault(packages.python((3, 10, 4)), "Python 3.10.4; 3.11", "python3.11 -m")
  assert packages.python((3, 11, 0)).status is Status.OK


@pytest.mark.parametrize("jaxlib, status", [
    ("0.10.2", Status.OK), ("0.10.1", Status.WARNING), ("0.9.0", Status.FAULT),
    ("0.11.0", Status.FAULT), (None, Status.FAULT)])
def test_jaxlib(tmp_path, jaxlib, status):
  more = {"jaxlib": jaxlib} if jaxlib else {}
  found = packages.jax(install(tmp_path, jax=JAX, **more))
  assert found.status is status
  assert found.fix == ("" if status is Status.OK
                       else "pip install 'jaxlib==0.10.2'")


def test_no_jax(tmp_path):
  fault(packages.jax(install(tmp_path)), "not installed", "pip install")


@pytest.mark.parametrize("version, status", [
    ("0.0.42.1", Status.OK), ("0.0.41", Status.FAULT), (None, Status.OK)])
def test_libtpu(tmp_path, version, status):
  more = {"libtpu": version} if version else {}
  found = packages.libtpu(install(tmp_path, jax=JAX, **more))
  assert found.status is status
  if status is Status.FAULT:
    fault(found, "made for ==0.0.42.*", "pip install -U 'jax[tpu]==0.10.2'")


def test_requirements_too_new_too_old_and_missing(tmp_path):
  found = install(
      tmp_path, deliberate_lm=("0.1", "Ml-Collections<2,>=1.1", "optax>=0.2.8",
                               "flax<0.13,>=0.12.8", "seqio>=0.0.20",
                               'torch>=2; extra == "bench"'),
      ml_collections="1.2.0.dev3", optax="0.2.7", flax="0.13.0rc1")
  wrong = packages.requirements(found)
  fault(wrong, "optax 0.2.7 (wanted: >=0.2.8)", "'flax<0.13,>=0.12.8'")
  assert "seqio is missing" in wrong.what
  assert "Collections" not in wrong.what and "torch" not in wrong.what


def test_packages_that_overwrite_each_other(tmp_path):
  found = install(tmp_path, tensorflow="2.21.0", tf_nightly="2.22.0.dev1",
                  libtpu="0.0.42", libtpu_nightly="0.1")
  fault(packages.duplicates(found), "libtpu and libtpu-nightly",
        "pip uninstall -y tensorflow tf-nightly libtpu libtpu-nightly && ")
  install(tmp_path / "two", jax="0.9.0")
  found = install(tmp_path / "two", Jax="0.10.2")
  fault(packages.duplicates(found), "jax 0.10.2 and 0.9.0", " jax==0.10.2")


def test_an_earlier_folder_hides_a_later_one(tmp_path):
  install(tmp_path / "first", jax="0.10.2")
  install(tmp_path / "second", jax="0.4.30")
  found = packages.installed([str(tmp_path / "first"),
                              str(tmp_path / "second")])
  assert [p.version for p in found["jax"]] == ["0.10.2"]
  assert packages.duplicates(found).status is Status.OK
