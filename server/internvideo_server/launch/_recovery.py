"""The launcher's part of supervision: what died is told to people, noted for the adapter, and started again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ._model_control import ModelControl, ReloadError
from ._processes import Ended, StubEnded, Supervisor, last_lines
from ._restarts import Restarts, TooManyRestartsError
from ._run_state import SUSPECT_FILE, RunState, private

TRITON, ADAPTER = "tritonserver", "adapter"
_LINES = 12  # of its log, beside a death
_TICK_S = 0.1
_PROBE_S = 5.0
_WITHOUT_PROCESS_S = 10.0  # of a model that is being loaded
_WATCH_EVERY_S, _WATCHES = 10.0, 3
_DEAF_AGAIN_S = 120.0  # a new process that is deaf so soon: its server may be, which lets nothing through to it

_log = logging.getLogger(__name__)

Death = Ended | StubEnded


class Recovery:
    """Threads beside a running server: one hears of deaths, one starts what died again, one asks the adapter whether it answers.

    Args:
        supervisor: Tells of deaths, and starts programs.
        checks: Program -> what tells why it is not ready yet, None when it is.
        is_deaf: Whether the adapter lets who asks it wait in vain.
        control: Of the models.
        state: Where the adapter reads what is dead.
        directory: The run's: logs (``MODEL.log`` of a model that writes one), and where the adapter says that a model is silent.
        restarts: Counts them.
        ready_timeout_s: How long one start may take.
        warn: Takes one line for people.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        checks: Mapping[str, Callable[[], str | None]],
        is_deaf: Callable[[], bool],
        control: ModelControl,
        state: RunState,
        directory: Path,
        restarts: Restarts,
        ready_timeout_s: float,
        warn: Callable[[str], None],
    ) -> None:
        self._supervisor, self._checks, self._control, self._state = supervisor, checks, control, state
        self._is_deaf = is_deaf
        self._directory, self._restarts, self._ready_timeout_s, self._warn = directory, restarts, ready_timeout_s, warn
        self._changed = threading.Condition()  # held to change what follows
        self._down: dict[str, Death] = {}
        self._suspected = False
        self._deaf: dict[str, float] = {}  # when a model was last ended for it
        self._closing = False
        self._ended: str | None = None
        self._threads = [
            threading.Thread(target=target, name=f"recovery-{target.__name__.strip('_')}", daemon=True)
            for target in (self._hear, self._heal_all, self._watch)
        ]

    def begin(self) -> None:
        """From now on a death is healed."""
        self._state.set_status("serving")
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> str | None:
        """Why the run is over, None while it goes on."""
        return self._ended

    def close(self) -> None:
        """From now on a death is what was wanted. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2.0)  # one that waits for a model to load is left behind

    def drain(self) -> None:
        """Likewise, and the adapter is told that no new request is wanted."""
        self.close()
        self._state.set_status("draining")

    def is_down(self, name: str) -> bool:
        """Whether a program or a model is dead at the moment."""
        with self._changed:
            return name in self._down

    # ---- hearing

    def _hear(self) -> None:
        while not self._closing and self._ended is None:
            if (death := self._supervisor.wait(_TICK_S)) is not None and not self._closing:
                self._note(death)
            elif (suspect := self._directory / SUSPECT_FILE).exists():
                suspect.unlink(missing_ok=True)
                with self._changed:
                    self._suspected = True
                    self._changed.notify_all()

    def _note(self, death: Death) -> None:
        name = death.model if isinstance(death, StubEnded) else death.name
        if name not in self._checks and isinstance(death, Ended):  # the supervisor itself
            self._give_up(str(death))
            return
        if isinstance(death, StubEnded) and self._was_wanted(death):
            return
        self._tell(f"{death}{self._last_lines(name)}")
        self._state.died(name, str(death))
        with self._changed:
            self._down[name] = death
            if name == TRITON:  # its models come back with it
                for model in [model for model, other in self._down.items() if isinstance(other, StubEnded)]:
                    self._state.back(model)
                    del self._down[model]
            self._changed.notify_all()

    def _was_wanted(self, death: StubEnded) -> bool:
        """Whether somebody unloaded the model, or loaded it anew. Triton often collects the exit code before it can be read."""
        if death.code is None:
            return death.model in self._supervisor.stubs or self._control.is_unloaded(death.model)
        return death.code == 0

    def _ask_all(self) -> None:
        """A request waits for longer than it should: a process that stands still dies, and is then healed like any dead one."""
        if not self.is_down(TRITON) and not self._control.server_answers(_PROBE_S):
            self._end_deaf(TRITON, _PROBE_S)
            return
        for model, pid in self._supervisor.stubs.items():
            if not self.is_down(model) and not self.is_down(TRITON) and not self._control.answers(model, _PROBE_S):
                again = time.monotonic() - self._deaf.get(model, -_DEAF_AGAIN_S) < _DEAF_AGAIN_S
                self._deaf[model] = time.monotonic()
                if again:
                    self._tell(f"model {model} does not answer though it was loaded anew")
                    self._end_deaf(TRITON, _PROBE_S)
                    return
                self._end_deaf(model, _PROBE_S, f"the process of model {model} ({pid})")

    def _watch(self) -> None:
        """The adapter is asked now and then: a balancer, or Docker, sees that it is deaf, but does not start it again."""
        deaf = 0
        while not self._wait_for(lambda: False, _WATCH_EVERY_S):
            deaf = deaf + 1 if not self.is_down(ADAPTER) and self._is_deaf() else 0
            if deaf == _WATCHES:
                deaf = 0
                self._end_deaf(ADAPTER, _WATCHES * _WATCH_EVERY_S)

    def _end_deaf(self, name: str, seconds: float, called: str = "") -> None:
        self._tell(f"{called or name} did not answer for {seconds:g} s: it is ended")
        self._supervisor.kill(name)

    # ---- healing

    def _heal_all(self) -> None:
        while True:
            with self._changed:
                while not (self._down or self._suspected or self._closing):
                    self._changed.wait()
                if self._closing or self._ended is not None:
                    return
                suspected, self._suspected = self._suspected and not self._down, False
            if suspected:
                self._ask_all()
                continue
            with self._changed:
                name = TRITON if TRITON in self._down else next(iter(self._down))
                death = self._down[name]
            try:
                delay = self._restarts.delay(name, time.monotonic())
            except TooManyRestartsError as error:
                self._give_up(f"{death}; {error}")
                return
            if delay:
                self._tell(f"{name} is started again in {delay:g} s")
                self._pause(delay)
            began = time.monotonic()
            if self._heal(name, death):
                self._back(name, death, time.monotonic() - began)

    def _heal(self, name: str, death: Death) -> bool:
        if isinstance(death, StubEnded):
            try:
                self._control.reload(name, self._ready_timeout_s, self._gives_up(name, death))
            except ReloadError as error:
                if not self._closing and not self.is_down(TRITON):
                    self._tell(f"{error}; tritonserver is started anew")
                    self._supervisor.end(TRITON)
                    self._wait_for(lambda: self.is_down(TRITON))
                return False
            return True
        self._supervisor.start(name)
        deadline = time.monotonic() + self._ready_timeout_s
        while (refusal := self._checks[name]()) is not None:
            with self._changed:
                if self._closing or self._down.get(name) is not death:
                    return False
                lost = name == TRITON and any(isinstance(other, StubEnded) for other in self._down.values())
            if lost or time.monotonic() > deadline:
                why = "a model's process died as it was loaded" if lost else f"after {self._ready_timeout_s:g} s ({refusal})"
                self._tell(f"{name} was not ready: {why}")
                self._supervisor.end(name)
                self._wait_for(lambda: self._down.get(name) is not death)
                return False
            self._pause(_TICK_S)
        return True

    def _gives_up(self, name: str, death: StubEnded) -> Callable[[], bool]:
        """Whether there is no use in waiting for a model: Triton does so for ever where its new process dies as it is loaded."""
        seen = time.monotonic()

        def gives_up() -> bool:
            nonlocal seen
            if name in self._supervisor.stubs:
                seen = time.monotonic()
            with self._changed:
                again = self._down.get(name) is not death
            return self._closing or again or time.monotonic() - seen > _WITHOUT_PROCESS_S

        return gives_up

    def _back(self, name: str, death: Death, seconds: float) -> None:
        with self._changed:
            if self._down.get(name) is not death:  # it died again
                return
            del self._down[name]
        self._state.back(name)
        self._tell(f"{name} is back after {seconds:.1f} s")

    def _give_up(self, reason: str) -> None:
        self._state.set_status("failed")
        self._tell(f"given up: {reason}")
        with self._changed:
            self._ended = reason
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        self._wait_for(lambda: False, seconds)

    def _wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> bool:
        """At most ``seconds``, and not beyond the end of the run: True where that has come."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._over and not condition() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._over

    @property
    def _over(self) -> bool:
        return self._closing or self._ended is not None

    def _last_lines(self, name: str) -> str:
        own = self._directory / f"{name}.log"
        return last_lines(own if own.exists() else self._directory / f"{TRITON}.log", _LINES)

    def _tell(self, text: str) -> None:
        self._warn(text)
        try:
            with open(self._directory / "supervisor.log", "a", opener=private) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            _log.warning("supervisor.log cannot be written: %s", error)
