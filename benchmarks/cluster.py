"""What routing makes of N replicas: a discrete-event simulation for ``benchmarks/scale.py``.

A replica is a CPU that decodes one video at a time, and one GPU that shares itself between bursts (tower, prefill; one at a time)
and the decode batch (one step for all its streams). Caches are LRU by video. A hit of the KV cache alone saves no tower, because
the engine's input is the table.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TOKENS, SLOTS = 64, 16  # of an answer; streams of a batch
TURNS, THINK_S = 3.0, 20.0  # questions a chat (geometric); seconds between an answer and the next question
POLICIES = ("round robin", "leastconn", "consistent", "125 %", "200 %", "300 %")


@dataclass(frozen=True)
class Costs:
    """Seconds of one request's parts on one replica, and how many videos its caches hold."""

    decode: float
    tower: float
    prefill: float
    warm_prefill: float
    step: float
    frames_kept: int
    embeddings_kept: int
    kv_kept: int

    @property
    def cold(self) -> float:
        """GPU seconds of a request that finds nothing, in a full batch."""
        return self.tower + self.prefill + TOKENS * self.step / SLOTS


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        share: Of what replicas do that find nothing in their caches.
        zipf: Exponent of the videos' popularity.
        private: Share of chats about a video that nobody else asks about.
        hot: Share of chats about one single video.
        seconds: Looked at, after as many to warm up (240 at most).
        faults: One replica dies after a third of the time, a new one joins after two.
    """

    share: float = 0.7
    zipf: float = 1.0
    private: float = 0.0
    hot: float = 0.0
    seconds: float = 300.0
    faults: bool = True


class _Lru:
    def __init__(self, size: int) -> None:
        self.size, self.kept = size, OrderedDict[int, None]()

    def use(self, key: int) -> bool:
        """Whether it was there; it is afterwards."""
        hit = key in self.kept
        self.kept[key] = None
        self.kept.move_to_end(key)
        if len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return hit


@dataclass(slots=True, eq=False)
class _Request:
    video: int
    turns_left: int
    later: bool
    arrived: float
    replica: _Replica
    first: float = 0.0
    burst: float = 0.0
    found: bool = False


@dataclass(eq=False)
class _Replica:
    number: int
    costs: Costs
    alive: bool = True
    served: int = 0
    cpu_free: float = 0.0
    bursts: deque[_Request] = field(default_factory=deque)  # the first is running
    burst_left: float = 0.0
    batch: list[tuple[float, int, _Request]] = field(default_factory=list)  # step at which it ends, tie, request
    waiting: deque[_Request] = field(default_factory=deque)  # for a place in the batch
    steps: float = 0.0
    at: float = 0.0
    version: int = 0
    busy: float = 0.0

    def __post_init__(self) -> None:
        kept = (self.costs.frames_kept, self.costs.embeddings_kept, self.costs.kv_kept)
        self.frames, self.embeddings, self.kv = map(_Lru, kept)

    def advance(self, now: float) -> None:
        """Move the state on to `now`."""
        passed, self.at = now - self.at, now
        speed = 0.5 if self.bursts and self.batch else 1.0
        if self.bursts or self.batch:
            self.busy += passed
        if self.bursts:
            self.burst_left -= passed * speed
        if self.batch:
            self.steps += passed / self.costs.step * speed

    def next_event(self) -> float | None:
        """Seconds until a burst or a stream ends, if nothing else comes."""
        slow = 2.0 if self.bursts and self.batch else 1.0
        times = [max(self.burst_left, 0.0) * slow] if self.bursts else []
        if self.batch:
            times.append(max(self.batch[0][0] - self.steps, 0.0) * self.costs.step * slow)
        return min(times, default=None)


class _Fleet:
    """Replicas, and the choice among them as HAProxy makes it."""

    def __init__(self, replicas: int, policy: str, costs: Costs, seed: int) -> None:
        self.all = [_Replica(number, costs) for number in range(replicas)]
        self._policy, self._turn, self._random = policy, itertools.count(), random.Random(seed)
        self._points = 160 if replicas > 30 else 1600
        self._factor = int(policy.removesuffix(" %")) / 100 if policy.endswith("%") else 0.0
        self.served = 0
        self.changed()

    def changed(self) -> None:
        """A replica died or joined."""
        self.alive = [replica for replica in self.all if replica.alive]
        places = sorted((_hash(f"{r.number}/{i}"), r.number) for r in self.alive for i in range(self._points))
        self._keys, self._owners = [place for place, _ in places], [owner for _, owner in places]

    def _walk(self, video: int) -> Iterator[int]:
        start, seen = bisect.bisect(self._keys, _hash(f"v{video}")), set[int]()
        for i in range(len(self._keys)):
            owner = self._owners[(start + i) % len(self._keys)]
            if owner not in seen:
                seen.add(owner)
                yield owner

    def choose(self, video: int) -> _Replica:
        if self._policy == "round robin":
            return self.alive[next(self._turn) % len(self.alive)]
        if self._policy == "leastconn":  # of 20 drawn: near enough, and much faster
            few = self.alive if len(self.alive) <= 20 else self._random.sample(self.alive, 20)
            low = min(replica.served for replica in few)
            return self._random.choice([replica for replica in few if replica.served == low])
        if not self._factor:
            return self.all[next(self._walk(video))]
        slots = max(1, -int(-(self.served + 1) * self._factor // len(self.alive)))
        return next((self.all[number] for number in self._walk(video) if self.all[number].served < slots), self.alive[0])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Simulation:
    """One run.

    Args:
        replicas: How many.
        policy: One of `POLICIES`.
        costs: Of each replica.
        load: What is asked.
        seed: Of everything that is drawn.
    """

    def __init__(self, replicas: int, policy: str, costs: Costs, load: Load, seed: int = 1) -> None:
        self._costs, self._load, self._rng = costs, load, random.Random(seed)
        self._fleet = _Fleet(replicas, policy, costs, seed)
        self._weights = list(itertools.accumulate((k + 1) ** -load.zipf for k in range(100 * replicas)))
        self._new_videos, self._tie = itertools.count(100 * replicas), itertools.count()
        self._chats_a_second = load.share * replicas / costs.cold / TURNS
        self._events: list[tuple[float, int, str, Any, int]] = []
        self._warm_up = min(load.seconds, 240.0)
        self._first: list[float] = []
        self._asked = self._found = self._later = self._later_found = self._lost = 0
        self._busy_before = 0.0

    def run(self) -> dict[str, float]:
        """First tokens (ms), GPU milliseconds an answer, shares found in the caches, work lost with the dead replica."""
        end = self._warm_up + self._load.seconds
        self._at(0.0, "chat")
        self._at(self._warm_up, "warm")
        if self._load.faults and len(self._fleet.all) > 1:
            self._at(self._warm_up + self._load.seconds / 3, "die")
            self._at(self._warm_up + self._load.seconds * 2 / 3, "join")
        while self._events and self._events[0][0] <= end:
            now, _, kind, what, version = heapq.heappop(self._events)
            getattr(self, f"_on_{kind}")(now, what, version)
        for replica in self._fleet.alive:
            replica.advance(end)
        busy = sum(replica.busy for replica in self._fleet.all) - self._busy_before
        self._first.sort()
        return {
            "p50 ms": self._first[len(self._first) // 2] * 1e3,
            "p99 ms": self._first[int(len(self._first) * 0.99)] * 1e3,
            "GPU ms an answer": busy / max(self._asked, 1) * 1e3,
            "found": self._found / max(self._asked, 1),
            "found, later questions": self._later_found / max(self._later, 1),
            "GPU busy": busy / self._load.seconds / len(self._fleet.alive),
            "asked again": self._lost,
        }

    def _at(self, time: float, kind: str, what: Any = None, version: int = 0) -> None:
        heapq.heappush(self._events, (time, next(self._tie), kind, what, version))

    def _plan(self, replica: _Replica) -> None:
        replica.version += 1
        if (wait := replica.next_event()) is not None:
            self._at(replica.at + wait, "gpu", replica, replica.version)

    def _video(self) -> int:
        drawn = self._rng.random()
        if drawn < self._load.hot:
            return 0
        if drawn < self._load.hot + self._load.private:
            return next(self._new_videos)
        return bisect.bisect(self._weights, self._rng.random() * self._weights[-1])

    def _on_chat(self, now: float, what: Any, version: int) -> None:
        turns = 1
        while self._rng.random() > 1 / TURNS:
            turns += 1
        self._on_ask(now, (self._video(), turns - 1, False), 0)
        self._at(now + self._rng.expovariate(self._chats_a_second), "chat")

    def _on_ask(self, now: float, what: tuple[int, int, bool], version: int) -> None:
        video, turns_left, later = what
        replica = self._fleet.choose(video)
        request = _Request(video, turns_left, later, now, replica)
        replica.served += 1
        self._fleet.served += 1
        request.found, kv = replica.embeddings.use(video), replica.kv.use(video)
        request.burst = (0 if request.found else self._costs.tower) + (self._costs.warm_prefill if kv else self._costs.prefill)
        ready = now
        if not request.found and not replica.frames.use(video):
            replica.cpu_free = ready = max(replica.cpu_free, now) + self._costs.decode
        self._at(ready, "burst", request)

    def _on_burst(self, now: float, request: _Request, version: int) -> None:
        replica = request.replica
        if replica.alive:
            replica.advance(now)
            replica.bursts.append(request)
            if len(replica.bursts) == 1:
                replica.burst_left = request.burst
            self._plan(replica)

    def _on_gpu(self, now: float, replica: _Replica, version: int) -> None:
        if version != replica.version or not replica.alive:
            return
        replica.advance(now)
        if replica.bursts and replica.burst_left <= 1e-9:
            request = replica.bursts.popleft()
            replica.burst_left = replica.bursts[0].burst if replica.bursts else 0.0
            request.first = now
            replica.waiting.append(request)
        while replica.batch and replica.batch[0][0] <= replica.steps + 1e-6:
            self._answered(now, heapq.heappop(replica.batch)[2])
        while replica.waiting and len(replica.batch) < SLOTS:
            heapq.heappush(replica.batch, (replica.steps + TOKENS, next(self._tie), replica.waiting.popleft()))
        self._plan(replica)

    def _answered(self, now: float, request: _Request) -> None:
        request.replica.served -= 1
        self._fleet.served -= 1
        if request.arrived >= self._warm_up:
            self._first.append(request.first - request.arrived)
            self._asked += 1
            self._found += request.found
            self._later += request.later
            self._later_found += request.later and request.found
        if request.turns_left:
            self._at(now + self._rng.expovariate(1 / THINK_S), "ask", (request.video, request.turns_left - 1, True))

    def _on_warm(self, now: float, what: Any, version: int) -> None:
        for replica in self._fleet.alive:
            replica.advance(now)
            self._plan(replica)
        self._busy_before = sum(replica.busy for replica in self._fleet.all)

    def _on_die(self, now: float, what: Any, version: int) -> None:
        """What is in flight there is lost, and asked again at once."""
        replica = self._fleet.all[0]
        again = [*replica.bursts, *(entry[2] for entry in replica.batch), *replica.waiting]
        again += [what for _, _, kind, what, _ in self._events if kind == "burst" and what.replica is replica]
        self._lost, replica.alive = len(again), False
        self._fleet.served -= replica.served
        self._fleet.changed()
        for request in again:
            self._on_ask(now, (request.video, request.turns_left, request.later), 0)

    def _on_join(self, now: float, what: Any, version: int) -> None:
        self._fleet.all.append(_Replica(len(self._fleet.all), self._costs, at=now))
        self._fleet.changed()
