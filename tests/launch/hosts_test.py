"""Hosts meet, or it is said by name who is missing or does not belong."""

import concurrent.futures
import json
import socket
import time

from lm.launch import hosts
from lm.types import UserError
import pytest

ABOUT = {"code": "a", "config": "b"}


def free_port():
  with socket.create_server(("localhost", 0)) as server:
    return server.getsockname()[1]


def meet(port, places, *, timeout=3.0, workdirs=None, abouts=None, delays=None):
  """What each of some processes gets, or the error that it ends with."""
  def one(index, count):
    time.sleep((delays or {}).get(index, 0))
    place = hosts.Place(f"localhost:{port}", count, index,
                        {0: "first", 1: "second", 2: "third"})
    try:
      return hosts.meet(place, about=(abouts or {}).get(index, ABOUT),
                        timeout=timeout, workdir=(workdirs or {}).get(index))
    except UserError as e:
      return e
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    return [f.result() for f in [pool.submit(one, *p) for p in places]]


def test_all_meet_in_any_order_and_learn_the_names(tmp_path):
  found = meet(free_port(), [(0, 3), (1, 3), (2, 3)], delays={0: 0.7, 2: 1.2},
               workdirs={i: tmp_path for i in range(3)}, timeout=20)
  name = socket.gethostname()
  assert found == [{0: name, 1: name, 2: name}] * 3
  assert json.loads((tmp_path / "hosts.json").read_text())["hosts"] == {
      "0": name, "1": name, "2": name}


def test_the_missing_are_named_to_all_who_came():
  zero, two = meet(free_port(), [(0, 3), (2, 3)])
  for error in (zero, two):
    assert isinstance(error, hosts.LostHosts)
    assert "1 of 3 processes are missing: second (process 1)" in str(error)


def test_no_process_0_is_said_with_its_address():
  port = free_port()
  (error,) = meet(port, [(1, 2)], timeout=1.0)
  assert isinstance(error, hosts.LostHosts)
  assert f"process 0 did not answer at localhost:{port}" in str(error)


@pytest.mark.parametrize("other, count, words", [
    ({"code": "a", "config": "c"}, 2, "(process 1) has another config than"),
    ({"code": "x", "config": "b"}, 2, "(process 1) has another code than"),
    (ABOUT, 5, "says --num_processes=5 but process 0 2"),
])
def test_hosts_that_do_not_belong_together(other, count, words):
  for error in meet(free_port(), [(0, 2), (1, count)], abouts={1: other},
                    timeout=20):
    assert isinstance(error, UserError)
    assert not isinstance(error, hosts.LostHosts)
    assert words in str(error)


def test_a_number_given_twice():
  zero, one, again = meet(free_port(), [(0, 3), (1, 3), (1, 3)], timeout=4)
  said = [str(one), str(again)]
  assert sum("is already there" in text for text in said) == 1
  assert "third (process 2)" in str(zero)


def test_working_folders_that_are_not_one(tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, "_LOOK", 0.5)
  one, two = tmp_path / "one", tmp_path / "two"
  one.mkdir()
  two.mkdir()
  for error in meet(free_port(), [(0, 2), (1, 2)], timeout=20,
                    workdirs={0: one, 1: two}):
    assert isinstance(error, UserError)
    assert f"--workdir={two} of {socket.gethostname()} (process 1) is not" in (
        str(error))


def test_strangers_and_the_dead_do_not_count():
  port = free_port()
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    waiting = pool.submit(meet, port, [(0, 2)], timeout=8)
    for line in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": "1"}\n', b"[]\n"):
      _say(port, line)
    assert not waiting.done()
    (second,) = meet(port, [(1, 2)], timeout=8)
    assert waiting.result()[0] == second == {
        0: socket.gethostname(), 1: socket.gethostname()}


def _say(port, line):
  for _ in range(50):
    try:
      with socket.create_connection(("localhost", port), 2) as connection:
        connection.sendall(line)
      return
    except OSError:
      time.sleep(0.05)
  raise AssertionError("process 0 does not listen")


def test_who_dies_while_waiting_is_missing_again():
  port = free_port()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(meet, port, [(0, 3)], timeout=3)
    _say(port, json.dumps({"process": 1, "count": 3, "host": "x", "pid": 1,
                           "about": ABOUT}).encode() + b"\n")
    (error,) = waiting.result()
  assert "2 of 3 processes are missing: second" in str(error)


@pytest.mark.parametrize("fields, words", [
    (dict(num_processes=2), "--coordinator=HOST:PORT"),
    (dict(num_processes=2, coordinator="here"), "not HOST:PORT"),
    (dict(num_processes=2, coordinator="a:1", process_id=2), "not below"),
])
def test_flags_that_do_not_fit_together(fields, words):
  with pytest.raises(UserError, match=words):
    hosts.find(**fields)


def test_one_process_needs_nobody():
  assert hosts.find() is None
  assert hosts.join(None) == {0: socket.gethostname()}


def test_nothing_to_find_is_said():
  with pytest.raises(UserError, match="--distributed found no other hosts"):
    hosts.find(auto=True, timeout=1)
