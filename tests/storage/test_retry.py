"""The retry policy, by a clock that costs no time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.errors import DamagedStoreError, UsageError
from lundprobe_zarr.storage.retry import ONCE, Clock, RetryPolicy


class FakeClock(Clock):
    """Passes the time at once, and remembers how long each pause was."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def always(error: BaseException) -> bool:
    return True


class TestAttempts:
    def test_each_has_half_of_what_is_left_and_the_last_all(self, clock: FakeClock) -> None:
        policy = RetryPolicy(silence=10.0, pauses=(1.0, 2.0), clock=clock)
        assert list(policy.attempts(0)) == [20.0, 19.5, 37.0]
        assert clock.slept == [1.0, 2.0]

    def test_end_once_the_time_is_over(self, clock: FakeClock) -> None:
        policy = RetryPolicy(silence=1.0, pauses=(0.1, 0.1), clock=clock)
        made = 0
        for seconds in policy.attempts(0):
            made += 1
            clock.time += seconds + 2.0  # a server that takes longer than it was given
        assert made == 1
        assert clock.slept == []

    @given(
        silence=st.floats(0.01, 100),
        size=st.integers(0, 10**9),
        pauses=st.lists(st.floats(0, 5), max_size=5),
        slow=st.floats(0, 1),
    )
    def test_all_attempts_and_pauses_keep_within_the_time_allowed(
        self, silence: float, size: int, pauses: list[float], slow: float
    ) -> None:
        clock = FakeClock()
        policy = RetryPolicy(silence, tuple(pauses), clock)
        begun = clock.now()
        for seconds in policy.attempts(size):
            clock.time += slow * seconds
        assert clock.now() - begun <= policy.allowed(size) * (1 + 1e-9)


class TestRequest:
    def test_is_repeated_after_what_may_pass(self, clock: FakeClock) -> None:
        policy = RetryPolicy(clock=clock)
        answers = iter([TimeoutError(), ConnectionResetError(), "there"])

        def attempt(seconds: float) -> str:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert policy.request(attempt, 0, always) == "there"
        assert clock.slept == [0.1, 0.5]

    def test_is_not_repeated_after_what_stays(self, clock: FakeClock) -> None:
        def attempt(seconds: float) -> None:
            raise PermissionError("no")

        with pytest.raises(PermissionError):
            RetryPolicy(clock=clock).request(attempt, 0, lambda error: False)
        assert clock.slept == []

    def test_raises_the_last_failure(self, clock: FakeClock) -> None:
        failures = [TimeoutError(str(n)) for n in range(3)]
        made = iter(failures)

        def attempt(seconds: float) -> None:
            raise next(made)

        with pytest.raises(TimeoutError, match="2"):
            RetryPolicy(clock=clock).request(attempt, 0, always)


class TestRepeat:
    @pytest.mark.parametrize("policy", [ONCE, RetryPolicy(pauses=())])
    def test_once_is_once(self, policy: RetryPolicy) -> None:
        made = []

        def attempt() -> None:
            made.append(1)
            raise DamagedStoreError("spoilt")

        with pytest.raises(DamagedStoreError):
            policy.repeat(attempt, DamagedStoreError, always)
        assert len(made) == 1

    def test_asks_before_each_pause_and_raises_what_the_last_attempt_does(
        self, clock: FakeClock
    ) -> None:
        asked: list[str] = []
        made = iter("abc")

        def attempt() -> None:
            raise DamagedStoreError(next(made))

        def repeats(error: DamagedStoreError) -> bool:
            asked.append(error.finding)
            return True

        with pytest.raises(DamagedStoreError, match="c"):
            RetryPolicy(clock=clock).repeat(attempt, DamagedStoreError, repeats)
        assert asked == ["a", "b"]
        assert clock.slept == [0.1, 0.5]

    def test_other_errors_are_raised_at_once(self, clock: FakeClock) -> None:
        def attempt() -> None:
            raise KeyError("other")

        with pytest.raises(KeyError):
            RetryPolicy(clock=clock).repeat(attempt, DamagedStoreError, always)
        assert clock.slept == []


def test_growing_pauses() -> None:
    assert RetryPolicy.growing(3).pauses == pytest.approx((0.2, 0.6, 1.8))
    assert RetryPolicy.growing(0).pauses == ()


@pytest.mark.parametrize("seconds", [0, -1, True, "5", float("nan")])
def test_what_is_no_time_is_refused(seconds: object) -> None:
    with pytest.raises(UsageError, match="timeout="):
        RetryPolicy.of(seconds)


def test_the_option_sets_the_silence_alone() -> None:
    assert RetryPolicy.of(7) == RetryPolicy(silence=7.0)
    assert RetryPolicy.of(None) == RetryPolicy()
