"""Locks of files: one holder at a time, and one sentence where the system has none."""

import os
import sys

import pytest

from segcft.core.file_locks import lock


def test_one_at_a_time(tmp_path):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert lock(first, wait=False)
    assert not lock(second, wait=False)
    os.close(first)
    assert lock(second)
    os.close(second)


def test_windows_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ValueError, match="segcft runs on Linux and macOS"):
        lock(os.open(tmp_path, os.O_RDONLY))
