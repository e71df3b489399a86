"""The state machine of the workers, on a fake clock: back-off, crash loops, silence, rolling restarts, the stop."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aclserve_server.supervisor.fleet import LEAVE_S, MOST_BACKOFF_S, START_FACTOR, Action, Fleet, Limits, Phase

LIMITS = Limits(first_backoff_s=1.0, restarts=3, stable_s=60.0, silence_s=20.0, stop_s=45.0)


def started(count: int = 3, limits: Limits = LIMITS) -> Fleet:
    """A fleet whose workers are all ready at 0."""
    fleet = Fleet(range(count), limits, 0.0)
    assert fleet.due(0.0) == [Action("start", device) for device in range(count)]
    for device in range(count):
        fleet.ready(device, 0.0)
    return fleet


def phases(fleet: Fleet) -> list[Phase]:
    return [worker.phase for worker in fleet.workers.values()]


def test_the_wait_doubles_and_the_worker_is_given_up() -> None:
    fleet, now, waits = started(1), 0.0, []
    for _ in range(LIMITS.restarts):
        fleet.exited(0, now)
        assert fleet.due(now) == []
        waits.append(fleet.next_deadline() - now)
        now = fleet.next_deadline()
        assert fleet.due(now) == [Action("start", 0)]
    assert waits == [1.0, 2.0, 4.0]
    assert not fleet.is_over
    fleet.exited(0, now)
    assert phases(fleet) == [Phase.GIVEN_UP]
    assert fleet.is_over
    assert fleet.has_failed
    assert fleet.next_deadline() == math.inf
    assert fleet.workers[0].restarts == LIMITS.restarts


def test_the_wait_is_bounded() -> None:
    fleet, now = started(1, Limits(first_backoff_s=0.5, restarts=10_000)), 0.0
    for _ in range(5000):
        fleet.exited(0, now)
        assert fleet.next_deadline() - now <= MOST_BACKOFF_S
        now = fleet.next_deadline()
        fleet.due(now)
    assert fleet.workers[0].phase is Phase.STARTING


@pytest.mark.parametrize("up_s", [59.0, 60.0])
def test_a_worker_that_stayed_up_counts_anew(up_s: float) -> None:
    fleet = started(1)
    for _ in range(3):
        fleet.exited(0, 0.0)
    fleet.workers[0].phase = Phase.STARTING
    fleet.ready(0, 100.0)
    fleet.exited(0, 100.0 + up_s)
    assert phases(fleet) == [Phase.WAITING if up_s >= 60.0 else Phase.GIVEN_UP]


def test_one_lost_worker_does_not_touch_the_others() -> None:
    fleet = started(3)
    fleet.exited(1, 5.0)
    assert fleet.due(5.0) == []
    assert phases(fleet) == [Phase.READY, Phase.WAITING, Phase.READY]
    assert fleet.due(6.0) == [Action("start", 1)]


def test_silence_is_ended() -> None:
    fleet = started(2)
    fleet.heard(0, 15.0)
    assert fleet.next_deadline() == 20.0
    assert fleet.due(20.0) == [Action("kill", 1)]
    assert fleet.due(20.0) == []
    fleet.exited(1, 20.0)
    assert fleet.workers[1].failures == 1
    fleet.heard(0, 20.0)
    assert fleet.due(21.0) == [Action("start", 1)]
    assert fleet.due(40.0) == [Action("kill", 0)]
    assert fleet.next_deadline() == 21.0 + START_FACTOR * LIMITS.silence_s


def test_silence_does_not_count_while_the_owner_slept() -> None:
    fleet = started(2)
    fleet.excuse(500.0)
    assert fleet.due(500.0) == []
    assert fleet.next_deadline() == 520.0


def test_a_long_life_that_ended_in_silence_was_a_long_life() -> None:
    fleet = started(1)
    fleet.workers[0].failures = 3
    fleet.heard(0, 90.0)
    fleet.due(110.0)
    fleet.exited(0, 111.0)
    assert (fleet.workers[0].phase, fleet.workers[0].failures) == (Phase.WAITING, 1)


def test_a_worker_that_does_not_stop_is_killed() -> None:
    fleet = started(2)
    fleet.stop(10.0)
    assert fleet.due(10.0) == [Action("terminate", 0), Action("terminate", 1)]
    fleet.exited(0, 20.0)
    assert fleet.next_deadline() == 55.0
    assert fleet.due(55.0) == [Action("kill", 1)]
    assert not fleet.is_over
    fleet.exited(1, 56.0)
    assert fleet.is_over
    assert not fleet.has_failed


def test_a_process_that_cannot_be_killed_is_left_behind() -> None:
    fleet = started(1)
    fleet.stop(0.0)
    fleet.due(0.0)
    assert fleet.due(45.0) == [Action("kill", 0)]
    assert fleet.next_deadline() == 45.0 + LEAVE_S
    assert fleet.due(45.0 + LEAVE_S) == []
    assert fleet.is_over


def test_a_process_that_hung_long_before_the_stop_has_its_time_to_leave_too() -> None:
    fleet = started(1)
    assert fleet.due(LIMITS.silence_s) == [Action("kill", 0)]
    stop = LIMITS.silence_s + 10 * LEAVE_S
    fleet.stop(stop)
    assert fleet.due(stop) == []
    assert not fleet.is_over
    assert fleet.next_deadline() == stop + LEAVE_S
    assert fleet.due(stop + LEAVE_S) == []
    assert fleet.is_over


def test_nothing_is_started_after_the_stop() -> None:
    fleet = started(2)
    fleet.exited(0, 1.0)
    fleet.stop(1.0)
    assert fleet.due(1000.0) == [Action("terminate", 1)]
    fleet.exited(1, 1000.0)
    assert fleet.due(2000.0) == []
    assert phases(fleet) == [Phase.ENDED, Phase.ENDED]


def test_a_rolling_restart_takes_one_at_a_time() -> None:
    fleet = started(3)
    fleet.roll(10.0)
    now = 10.0
    for device in range(3):
        assert fleet.due(now) == [Action("terminate", device)]
        assert fleet.due(now + 1) == []
        fleet.exited(device, now + 2)
        assert fleet.due(now + 2) == [Action("start", device)]
        assert fleet.due(now + 2) == []
        now += 3
        fleet.ready(device, now)
    assert fleet.due(now) == []
    assert not fleet.rolling
    assert [worker.restarts for worker in fleet.workers.values()] == [1, 1, 1]
    assert [worker.failures for worker in fleet.workers.values()] == [0, 0, 0]


def test_a_rolling_restart_waits_for_a_worker_that_is_down() -> None:
    fleet = started(3)
    fleet.exited(2, 0.0)
    fleet.roll(0.5)
    assert fleet.due(0.5) == []
    assert fleet.due(1.0) == [Action("start", 2)]
    fleet.ready(2, 2.0)
    assert fleet.due(2.0) == [Action("terminate", 0)]
    assert not fleet.workers[2].old  # its process is younger than the wish


def test_a_rolling_restart_ends_where_a_worker_does_not_come_back() -> None:
    fleet, now = started(3), 0.0
    fleet.roll(0.0)
    assert fleet.due(0.0) == [Action("terminate", 0)]
    fleet.exited(0, 0.0)
    for _ in range(LIMITS.restarts + 1):
        assert fleet.due(now) == [Action("start", 0)]
        fleet.exited(0, now)
        now = fleet.next_deadline()
    assert not fleet.rolling
    for device in (1, 2):
        fleet.heard(device, now)
    assert fleet.due(now) == []
    assert phases(fleet) == [Phase.GIVEN_UP, Phase.READY, Phase.READY]


def test_a_rolling_restart_gives_another_chance_and_goes_on_when_it_is_not_taken() -> None:
    """A card that is broken anyhow does not keep the others from being restarted."""
    fleet = started(2, Limits(first_backoff_s=1.0, restarts=0, silence_s=0.0))
    fleet.exited(0, 0.0)
    assert phases(fleet) == [Phase.GIVEN_UP, Phase.READY]
    fleet.roll(5.0)
    assert fleet.due(5.0) == [Action("start", 0)]
    fleet.exited(0, 6.0)
    assert fleet.due(6.0) == [Action("terminate", 1)]
    fleet.exited(1, 7.0)
    assert fleet.due(7.0) == [Action("start", 1)]
    fleet.ready(1, 8.0)
    assert fleet.due(8.0) == []
    assert not fleet.rolling


def test_a_second_wish_replaces_what_the_first_had_made() -> None:
    fleet = started(2)
    fleet.roll(0.0)
    fleet.due(0.0)
    fleet.exited(0, 1.0)
    fleet.due(1.0)
    fleet.ready(0, 2.0)
    fleet.roll(2.0)
    assert fleet.due(2.0) == [Action("terminate", 0)]


def test_settled_is_when_all_were_tried_and_one_serves() -> None:
    fleet = Fleet((0, 1), LIMITS, 0.0)
    fleet.due(0.0)
    fleet.ready(1, 1.0)
    assert not fleet.is_settled
    fleet.exited(0, 2.0)
    assert fleet.is_settled


class Lives(RuleBasedStateMachine):
    """Processes that come up, fall silent, die and hang as they like; the fleet must keep its word all the while."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limits = Limits(first_backoff_s=0.5, restarts=2, stable_s=10.0, silence_s=8.0, stop_s=5.0)
        self.fleet = Fleet((3, 4, 7), self.limits, 0.0)
        self.alive: set[int] = set()
        self.up_since: dict[int, float] = {}
        self.in_a_row = dict.fromkeys((3, 4, 7), 0)
        self.told: set[int] = set()
        self.killed: set[int] = set()
        self.wait_until: dict[int, float] = {}
        self.act()

    def act(self) -> None:
        """Carries out what is due, and holds it against the rules."""
        for action in self.fleet.due(self.now):
            device = action.device
            if action.kind == "start":
                assert not self.fleet.stopping
                assert device not in self.alive, "two processes for one device"
                assert self.now >= self.wait_until.pop(device, 0.0), "started before its wait was over"
                self.alive.add(device)
            elif action.kind == "terminate":
                assert device in self.alive
                assert device not in self.told
                if not self.fleet.stopping:
                    others = {d for d, w in self.fleet.workers.items() if w.phase is not Phase.GIVEN_UP} - {device}
                    assert others == set(self.up_since) - {device} - self.told - self.killed, "two are down at a time"
                self.told.add(device)
            else:
                assert device in self.alive
                assert device not in self.killed
                self.killed.add(device)
        assert self.fleet.due(self.now) == [], "the same again"

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (then := self.fleet.next_deadline()) <= end:
            assert then > self.now, "a deadline that was not met"
            self.now = then
            self.act()
        self.now = end
        assert self.fleet.due(self.now) == [], "something was due before the deadline told"

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def is_heard(self, data: st.DataObject) -> None:
        self.fleet.heard(data.draw(st.sampled_from(sorted(self.alive))), self.now)
        self.act()

    @precondition(lambda self: self.alive - self.told - self.killed - set(self.up_since))
    @rule(data=st.data())
    def comes_up(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(sorted(self.alive - self.told - self.killed - set(self.up_since))))
        self.up_since[device] = self.now
        self.fleet.ready(device, self.now)
        self.act()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(sorted(self.alive)))
        since = self.up_since.pop(device, None)
        if since is not None and self.now - since >= self.limits.stable_s:
            self.in_a_row[device] = 0
        self.alive.discard(device)
        if device not in self.told and not self.fleet.stopping:
            self.in_a_row[device] += 1
            wait = min(0.5 * 2 ** (self.in_a_row[device] - 1), MOST_BACKOFF_S)
            self.wait_until[device] = self.now + wait
        self.told.discard(device)
        self.killed.discard(device)
        self.fleet.exited(device, self.now)
        given_up = self.in_a_row[device] > self.limits.restarts and not self.fleet.stopping
        assert (self.fleet.workers[device].phase is Phase.GIVEN_UP) == given_up
        if given_up:
            del self.wait_until[device]
        self.act()

    @rule()
    def rolls(self) -> None:
        if not self.fleet.stopping:
            for device, worker in self.fleet.workers.items():
                if worker.phase is Phase.GIVEN_UP:
                    self.in_a_row[device] = 0
        self.fleet.roll(self.now)
        self.act()

    @precondition(lambda self: self.now > 30)
    @rule()
    def stops(self) -> None:
        self.fleet.stop(self.now)
        self.act()

    @invariant()
    def a_roll_ends_or_can_go_on(self) -> None:
        waits = self.alive or any(worker.phase is Phase.WAITING for worker in self.fleet.workers.values())
        assert not self.fleet.rolling or waits

    def teardown(self) -> None:
        """From anywhere, well-behaved processes come up again at an operator's wish, or all comes to its end."""
        self.settle()  # those that were about to be killed may be given up in it
        self.fleet.roll(self.now)
        self.act()
        self.settle()
        phases = {worker.phase for worker in self.fleet.workers.values()}
        assert phases <= ({Phase.ENDED, Phase.GIVEN_UP} if self.fleet.stopping else {Phase.READY}), phases
        assert not self.fleet.rolling

    def settle(self) -> None:
        for _ in range(20):
            for device in sorted(self.alive):
                if device in self.told | self.killed:
                    self.ends_now(device)
                elif device not in self.up_since:
                    self.up_since[device] = self.now
                    self.fleet.ready(device, self.now)
                else:
                    self.fleet.heard(device, self.now)
                self.act()
            self.time_passes(1.0)

    def ends_now(self, device: int) -> None:
        self.up_since.pop(device, None)
        self.alive.discard(device)
        if device not in self.told:
            self.in_a_row[device] += 1
        self.told.discard(device)
        self.killed.discard(device)
        self.fleet.exited(device, self.now)


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
test_any_history = Lives.TestCase
