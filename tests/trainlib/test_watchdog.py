"""The watchdog, with a clock and a loop that the test moves."""

import contextlib
import io

import pytest

from trainlib.progress import Beat, Progress
from trainlib.watchdog import EXEMPT, Watchdog, limit


class Loop:
    def __init__(self, **fields):
        self.now = 0.0
        self.beat = Beat(0, "step 7", False, 0.0)._replace(**fields)

    def watchdog(self, least=60.0, poll=1.0):
        return Watchdog(
            lambda: self.beat, least, tell=lambda text: None, clock=lambda: self.now, poll=poll
        )

    def looks(self, dog, seconds):
        """Looks once a second; returns when the dog first found the loop stuck, or None."""
        for second in range(1, seconds + 1):
            self.now += 1.0
            if dog.look() is not None:
                return second
        return None


@pytest.mark.parametrize(("typical", "seconds"), [(0.0, 60), (0.5, 60), (6.0, 60), (9.0, 90)])
def test_a_step_may_take_sixty_seconds_or_ten_usual_ones(typical, seconds):
    loop = Loop(typical=typical)
    assert limit(loop.beat, 60.0) == seconds
    assert loop.looks(loop.watchdog(), 200) == seconds + 1


def test_compiling_evaluation_and_saving_have_a_limit_of_their_own():
    loop = Loop(exempt=True, typical=1.0)
    dog = loop.watchdog()
    assert loop.looks(dog, int(EXEMPT)) is None
    assert loop.looks(dog, 5) == 1


def test_every_end_of_something_starts_the_time_again():
    loop = Loop()
    dog = loop.watchdog()
    for mark in range(5):
        assert loop.looks(dog, 59) is None
        loop.beat = loop.beat._replace(mark=mark + 1)
    assert loop.looks(dog, 100) == 62  # one look takes the new mark in, then 60 seconds, then late


def test_time_in_which_the_process_was_stopped_does_not_count():
    loop = Loop()
    dog = loop.watchdog()
    assert loop.looks(dog, 30) is None
    loop.now += 3600  # Ctrl-Z, lunch, fg
    # The look after the gap counts 2 polls: 30 + 2 + 29 more looks are above 60.
    assert loop.looks(dog, 100) == 30


def test_a_stuck_loop_is_dumped_told_and_left(capfd):
    told, left = [], []
    with Watchdog(
        lambda: Beat(3, "step 7", False, 0.01), 0.1, tell=told.append, leave=left.append, poll=0.02
    ) as dog:
        dog._thread.join(10)
    assert left == [76]
    assert "Stuck: step 7 has not ended" in told[0]
    error = capfd.readouterr().err
    assert "test_watchdog.py" in error  # the stack of this test, which waits in join
    assert "a step usually takes 0.01 s" in error


def test_zero_turns_it_off():
    loop = Loop()
    with loop.watchdog(least=0.0) as dog:
        assert not dog._thread.is_alive()


def test_the_beat_of_a_loop():
    clock = [0.0]
    progress = Progress(10, stream=io.StringIO(), clock=lambda: clock[0])
    assert progress.beat() == Beat(0, "step 1", True, 0.0)  # compiles
    seconds = (5.0, 1.0, 1.0, 4.0)
    for step, spent in enumerate(seconds, start=1):
        clock[0] += spent
        progress.update(step)
    beat = progress.beat()
    assert beat.doing == "step 5"
    assert not beat.exempt
    assert beat.typical == 1.0  # of 1, 1, 4: the first step compiled
    marks = [beat.mark]
    with progress.pause("saving"):
        inside = progress.beat()
        marks.append(inside.mark)
        assert inside.exempt
        assert inside.doing == "saving"
        clock[0] += 100
    marks.append(progress.beat().mark)
    assert len(set(marks)) == 3
    clock[0] += 1
    progress.update(5)
    assert progress.beat().typical == 1.0  # the pause is no part of a step
    with contextlib.suppress(ValueError), progress.waiting():
        assert progress.beat().doing == "the wait for data"
        assert not progress.beat().exempt
        raise ValueError
    assert progress.beat().doing == "step 6"
