"""Buffers that go round, and the flag that stops everybody."""

from __future__ import annotations

import threading
import time

import pytest

from tensorport_hub.engine.blocks import BlockPool, Room, SharedBlock, StopFlag, Stopped

pytestmark = pytest.mark.timeout(60)


class TestStopFlag:
    """Set once, by whoever fails first."""

    def test_first_error_is_kept(self) -> None:
        """Later errors don't replace the first one."""
        stop = StopFlag()
        assert not stop
        first = ValueError("first")
        stop.fail(first)
        stop.fail(ValueError("second"))
        assert stop
        assert stop.error is first

    def test_stopped_is_no_error(self) -> None:
        """Who only noticed the stop is not at fault; an error that comes later is kept."""
        stop = StopFlag()
        stop.fail(Stopped())
        assert stop
        assert stop.error is None
        late = KeyboardInterrupt()
        stop.fail(late)
        assert stop.error is late

    def test_one_of_many_threads_is_first(self) -> None:
        """Of eight threads that fail at once exactly one's error is kept."""
        stop, ready = StopFlag(), threading.Barrier(8)
        errors = [ValueError(i) for i in range(8)]

        def fail(error: ValueError) -> None:
            ready.wait()
            stop.fail(error)

        threads = [threading.Thread(target=fail, args=(error,)) for error in errors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stop.error in errors

    def test_wait_ends_with_the_stop(self) -> None:
        """A sleep is cut short by a stop, and says so; without one it lasts."""
        stop = StopFlag()
        assert not stop.wait(0.01)
        timer = threading.Timer(0.05, stop.fail, [ValueError()])
        timer.start()
        begun = time.monotonic()
        assert stop.wait(20)
        assert time.monotonic() - begun < 5
        timer.join()


class TestBlockPool:
    """At most so many buffers."""

    def test_waits_for_a_free_buffer(self) -> None:
        """With all buffers taken, `take` waits until one comes back, and gets that very one."""
        pool = BlockPool(2, 100, StopFlag())
        first, second = pool.take(100), pool.take(50)
        got: list[SharedBlock] = []
        thread = threading.Thread(target=lambda: got.append(pool.take(80)))
        thread.start()
        time.sleep(0.05)
        assert got == []
        first.release()
        thread.join()
        assert got[0].data.size == 80
        assert got[0].data.base is first.data.base
        assert second.data.size == 50

    def test_stop_ends_the_wait(self) -> None:
        """A stop wakes whoever waits for a buffer."""
        stop = StopFlag()
        pool = BlockPool(1, 100, stop)
        pool.take(1)
        timer = threading.Timer(0.05, stop.fail, [ValueError()])
        timer.start()
        begun = time.monotonic()
        with pytest.raises(Stopped):
            pool.take(1)
        assert time.monotonic() - begun < 5
        timer.join()

    def test_last_holder_gives_it_back(self) -> None:
        """A shared block comes back when its last holder is done, not before."""
        stop = StopFlag()
        pool = BlockPool(1, 100, stop)
        block = pool.take(100)
        assert block.hold() is block
        block.hold()
        block.release()
        block.release()
        stop.fail(ValueError())  # so that an empty pool answers at once
        with pytest.raises(Stopped):
            pool.take(1)
        block.release()
        assert pool.take(100).data.base is block.data.base

    def test_larger_than_usual(self) -> None:
        """A grain that is larger than a block gets a buffer of its size; their number stays."""
        stop = StopFlag()
        pool = BlockPool(1, 100, stop)
        large = pool.take(1000)
        assert large.data.size == 1000
        large.release()
        assert pool.take(100).data.size == 100
        stop.fail(ValueError())
        with pytest.raises(Stopped):
            pool.take(1)

    def test_many_threads_share_few_buffers(self) -> None:
        """Eight threads that take, fill, check and release never see another one's bytes."""
        pool = BlockPool(3, 64, StopFlag())
        wrong: list[int] = []

        def work(number: int) -> None:
            for _ in range(200):
                block = pool.take(64)
                block.data[:] = number
                time.sleep(0)
                if not (block.data == number).all():
                    wrong.append(number)
                block.release()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class TestRoom:
    """Bytes that several may hold together."""

    def test_first_come_first_served(self) -> None:
        """Who waits for much is not overtaken by who wants little."""
        room, order = Room(100, StopFlag()), list[int]()
        room.take(60)

        def take(nbytes: int) -> None:
            room.take(nbytes)
            order.append(nbytes)

        large = threading.Thread(target=take, args=(80,))
        large.start()
        time.sleep(0.05)
        small = threading.Thread(target=take, args=(10,))
        small.start()
        time.sleep(0.05)
        assert order == []
        room.give(60)
        large.join()
        small.join()
        assert order == [80, 10]

    def test_nothing_is_always_there(self) -> None:
        """Parts that hold nothing don't queue."""
        room = Room(0, StopFlag())
        room.take(0)

    def test_a_stop_ends_the_wait(self) -> None:
        """Who waits when the run stops is told."""
        stop = StopFlag()
        room = Room(10, stop)
        timer = threading.Timer(0.05, stop.fail, [ValueError("stop")])
        timer.start()
        with pytest.raises(Stopped):
            room.take(11)
        timer.join()
