"""One user and the others: turns, a full queue, and opened images."""

import asyncio
import json
import subprocess
import sys
import time

import pytest

pytest.importorskip("starlette")

from segcft.app.fair_queue import FairQueue
from segcft.app.requests import Refused
from segcft.app.sessions import Session, Sessions
from segcft.app.users import User
from tests.cli.test_launch import environment

ALICE, BOB, MALLORY = (User(address) for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"))


def sleep_for(seconds, log, name):
    def work():
        time.sleep(seconds)
        log.append(name)

    return work


def test_users_take_turns():
    log = []

    async def ask():
        queue = FairQueue()
        floods = [queue.run(MALLORY, sleep_for(0.02, log, "flood")) for _ in range(8)]
        floods = [asyncio.ensure_future(each) for each in floods]
        await asyncio.sleep(0.01)
        others = [queue.run(user, sleep_for(0.02, log, user.address)) for user in (ALICE, BOB, ALICE)]
        await asyncio.gather(*floods, *others)

    asyncio.run(ask())
    assert log[0] == "flood"
    assert log.index(ALICE.address) < 3
    assert log.index(BOB.address) < 4
    assert log[:5].count(ALICE.address) == 2, "a turn each"


def test_a_user_with_many_cookies_waits_for_those_with_one():
    log = []

    async def ask():
        queue = FairQueue()
        floods = [queue.run(MALLORY._replace(visitor=str(each)), sleep_for(0.01, log, "flood")) for each in range(30)]
        floods = [asyncio.ensure_future(each) for each in floods]
        await asyncio.sleep(0.005)
        await asyncio.gather(*floods, queue.run(ALICE, sleep_for(0.01, log, "alice")))

    asyncio.run(ask())
    assert log.index("alice") < 3


def test_a_full_queue_refuses_those_who_fill_it():
    async def ask():
        queue = FairQueue(most=20, each=8)
        running = asyncio.ensure_future(queue.run(BOB, lambda: time.sleep(0.2)))
        await asyncio.sleep(0.02)
        floods = [queue.run(MALLORY._replace(visitor=str(each)), lambda: None) for each in range(20)]
        floods = [asyncio.ensure_future(each) for each in floods]
        own = [asyncio.ensure_future(queue.run(BOB, lambda: None)) for _ in range(9)]
        await asyncio.sleep(0.02)
        assert await queue.run(ALICE, lambda: "answered") == "answered"
        await running
        return [await asyncio.gather(*each, return_exceptions=True) for each in (floods, own)]

    floods, own = asyncio.run(ask())
    assert {each.status for each in floods if each is not None} == {503}
    assert sum(each is not None for each in floods) >= 9
    assert [each.status for each in own if each is not None] == [429]


def test_a_question_whose_asker_has_gone_is_not_answered():
    async def ask():
        queue, log = FairQueue(), []

        async def gone():
            return True

        with pytest.raises(Refused):
            await queue.run(ALICE, sleep_for(0, log, "alice"), gone)
        waiting = asyncio.ensure_future(queue.run(MALLORY, lambda: time.sleep(0.1)))
        await asyncio.sleep(0.01)
        cancelled = asyncio.ensure_future(queue.run(ALICE, sleep_for(0, log, "alice")))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.gather(waiting, cancelled, return_exceptions=True)
        assert await queue.run(BOB, lambda: "goes on") == "goes on"
        return log

    assert asyncio.run(ask()) == []


def test_a_user_who_opens_many_images_closes_nobody_elses(service):
    subject = service.open_case("test 1")
    size = Session(subject).size
    sessions = Sessions(room=10 * size)
    alice, bob = (sessions.add(Session(subject, user=user)) for user in (ALICE, BOB))
    own = [sessions.add(Session(subject, user=MALLORY._replace(visitor=str(each)))) for each in range(50)]
    assert sessions.get(alice)
    assert sessions.get(bob)
    assert sessions.get(own[-1])
    with pytest.raises(Refused, match="open it again"):
        sessions.get(own[0])
    small = Sessions(room=3 * size)
    others = [small.add(Session(subject, user=user)) for user in (ALICE, BOB)]
    vast = type("Vast", (Session,), {"size": 3 * size})(subject, user=MALLORY)
    with pytest.raises(Refused, match="no room"):
        small.add(vast)
    assert all(small.get(each) for each in others)


@pytest.mark.slow
def test_malicious_users_hardly_slow_the_others_down(tmp_path):
    """A short version of the benchmark, whose numbers are in docs/reliability.md."""
    from benchmarks.app_users import Run

    options = ["--seconds=15", "--users=20", "--malicious=2", f"--out={tmp_path / 'runs.json'}"]
    command = [sys.executable, "-m", "benchmarks.app_users", *options]
    assert subprocess.run(command, env=environment(), check=False, timeout=300).returncode == 0
    peace, attacked = (Run(**run) for run in json.loads((tmp_path / "runs.json").read_text())["runs"])
    assert peace.answers > 10
    assert attacked.answers > 10
    assert (peace.mixed, attacked.mixed, peace.refused, attacked.refused) == (0, 0, 0, 0)
    assert attacked.p95 <= 5 * peace.p95 + 3, "measured on a quiet machine in docs/reliability.md"
    assert attacked.memory_after < peace.memory_after + 50
    assert (attacked.log, attacked.files) == (0, [])
