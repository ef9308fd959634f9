"""The watchdog, with a clock and a loop that the test moves."""

import contextlib
import io

import pytest

from trainlib.run import watchdog
from trainlib.run.progress import Beat, Progress
from trainlib.run.watchdog import LIMITS, Watchdog, limit


class Loop:
    def __init__(self, **fields):
        self.now = 0.0
        self.beat = Beat(0, "step 7", "step", 0.0)._replace(**fields)

    def watchdog(self, least=60.0, poll=1.0, inside=True):
        dog = Watchdog(least, tell=lambda text: None, clock=lambda: self.now, poll=poll)
        if inside:
            self.followed = dog.follow(lambda: self.beat)
            self.followed.__enter__()
            dog.look()
        return dog

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


@pytest.mark.parametrize("phase", ["compiling", "evaluating", "saving"])
def test_phases_of_a_loop_have_limits_of_their_own(phase):
    loop = Loop(phase=phase, typical=1.0)
    dog = loop.watchdog()
    assert loop.looks(dog, int(LIMITS[phase])) is None
    assert loop.looks(dog, 5) == 1
    assert limit(loop.beat, 1e5) == 1e5  # stuck_after raises them


def test_before_and_after_the_loop_it_watches_as_well():
    """Each phase has its own time: the one before does not count."""
    loop = Loop()
    dog = loop.watchdog(inside=False)
    dog.enter("connecting", "the meeting of the hosts")
    assert loop.looks(dog, 800) is None
    dog.enter("starting", "the start of the run")
    assert loop.looks(dog, 7200) is None
    with dog.follow(lambda: loop.beat):
        assert loop.looks(dog, 60) is None
        assert loop.looks(dog, 5) == 2  # one look took the loop in
    assert loop.looks(dog, 7201) is None
    assert loop.looks(dog, 5) == 1
    late = dog.look()
    assert late is not None
    assert late[0].doing == "the end of the run"


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
    beat = Beat(3, "step 7", "step", 0.01)
    with (
        Watchdog(0.1, tell=told.append, leave=left.append, poll=0.02) as dog,
        dog.follow(lambda: beat),
    ):
        dog._thread.join(1200)
    assert left == [76]
    assert "Stuck: step 7 has not ended" in told[0]
    error = capfd.readouterr().err
    assert "test_watchdog.py" in error  # the stack of this test, which waits in join
    assert "a step usually takes 0.01 s" in error


def test_the_run_that_is_watched_is_the_one_that_says_what_it_is_at():
    watchdog.enter("starting", "nobody watches")
    with watchdog.follow(lambda: Beat(0, "step 1", "step", 0.0)):
        pass
    with watchdog.watching(60.0, lambda text: None):
        dog = watchdog._watchdog
        assert dog is not None
        watchdog.enter("connecting", "the meeting")
        assert dog._source().phase == "connecting"
        with watchdog.follow(lambda: Beat(0, "step 1", "step", 0.0)):
            assert dog._source().doing == "step 1"
        assert dog._source().doing == "the end of the run"
    assert watchdog._watchdog is None
    assert not dog._thread.is_alive()


def test_zero_turns_it_off():
    loop = Loop()
    with loop.watchdog(least=0.0) as dog:
        assert not dog._thread.is_alive()


def test_the_beat_of_a_loop():
    clock = [0.0]
    progress = Progress(10, stream=io.StringIO(), clock=lambda: clock[0])
    assert progress.beat() == Beat(0, "step 1", "compiling", 0.0)
    seconds = (5.0, 1.0, 1.0, 4.0)
    for step, spent in enumerate(seconds, start=1):
        clock[0] += spent
        progress.update(step)
    beat = progress.beat()
    assert beat.doing == "step 5"
    assert beat.phase == "step"
    assert beat.typical == 1.0  # of 1, 1, 4: the first step compiled
    marks = [beat.mark]
    with progress.pause("saving"):
        inside = progress.beat()
        marks.append(inside.mark)
        assert inside.phase == inside.doing == "saving"
        clock[0] += 100
    marks.append(progress.beat().mark)
    assert len(set(marks)) == 3
    clock[0] += 1
    progress.update(5)
    assert progress.beat().typical == 1.0  # the pause is no part of a step
    with contextlib.suppress(ValueError), progress.waiting():
        assert progress.beat().doing == "the wait for data"
        assert progress.beat().phase == "step"
        raise ValueError
    assert progress.beat().doing == "step 6"
