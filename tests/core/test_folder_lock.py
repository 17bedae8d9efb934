"""Two processes are never in one folder, and one that has ended locks nobody out."""

import json
import os
import signal
import time

import pytest

from segcft.core import folder_lock
from segcft.core.folder_lock import alone


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT", 0.05)
    monkeypatch.setattr(folder_lock, "SILENCE", 0.5)


def held_by_child(path):
    """A child that holds the lock; returned once it does."""
    child = os.fork()
    if not child:
        with alone(path):
            time.sleep(30)
        os._exit(0)
    while not path.exists():
        time.sleep(0.01)
    return child


def end(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_second_process_is_refused_with_the_holders_name_and_let_in_once_it_was_killed(tmp_path):
    path = tmp_path / "lock"
    child = held_by_child(path)
    try:
        with pytest.raises(ValueError, match=f"in use by process {child} on {os.uname().nodename}"), alone(path):
            pass
    finally:
        end(child)
    with alone(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_with_the_number_of_one_that_has_ended_is_another(tmp_path):
    path = tmp_path / "lock"
    child = held_by_child(path)
    end(child)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": os.getpid()}))
    with alone(path):
        pass


@pytest.mark.parametrize("beats", [True, False])
def test_a_holder_on_another_host_lives_as_long_as_it_touches_its_file(tmp_path, beats, quick, monkeypatch):
    path = tmp_path / "lock"
    child = held_by_child(path)
    try:
        monkeypatch.setattr(folder_lock, "_place", lambda: {"host": "elsewhere", "boot": "", "space": ""})
        if not beats:
            os.kill(child, signal.SIGSTOP)
            with alone(path) as lock:
                os.kill(child, signal.SIGCONT)
                time.sleep(0.2)
                lock.check()
            return
        with pytest.raises(ValueError, match="in use"), alone(path):
            pass
    finally:
        end(child)


def test_a_holder_that_lost_it_learns_so_and_leaves_the_others_file(tmp_path):
    path = tmp_path / "lock"
    with alone(path) as lock:
        path.write_text("{}")
        with pytest.raises(ValueError, match="taken over"):
            lock.check()
    assert path.read_text() == "{}"


def test_many_at_once_go_one_after_the_other(tmp_path):
    path, count = tmp_path / "lock", tmp_path / "count"
    count.write_text("0")
    children = []
    for _ in range(8):
        children.append(os.fork())
        if not children[-1]:
            code = 1
            try:
                for _ in range(5):
                    with alone(path, wait=True):
                        number = int(count.read_text())
                        time.sleep(0.002)
                        count.write_text(str(number + 1))
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert count.read_text() == "40"


def test_a_file_that_is_no_lock_of_ours_is_replaced_after_a_while(tmp_path, quick):
    path = tmp_path / "lock"
    path.write_text("\x00 half a line")
    with alone(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
