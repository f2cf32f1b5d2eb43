"""What runs, as ``internvideo status`` shows it, and how it is told to end."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import Counter
from dataclasses import dataclass

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from ._errors import LaunchError
from ._registry import RunRecord, living_runs, state_of
from ._supervisor import marked_processes

_CALL_S = 5.0
_DONE, _AT_WORK = "internvideo_requests_total", "internvideo_requests_in_flight"  # Triton's counters miss decoupled ensembles


@dataclass(frozen=True)
class RunStatus:
    """One living run.

    Attributes:
        record: What it says of itself.
        status: "starting", "serving", "recovering", "degraded", "draining" or "failed".
        uptime_s: Since the launcher began.
        down: Programs and models that are dead at the moment.
        deaths: Name -> how often it died in this run.
        processes: Ids of all its processes but the launcher and its supervisor.
        requests: Ended since the adapter started; None where it does not tell, because it wants a key, say.
        at_work: Requests under way, likewise.
    """

    record: RunRecord
    status: str
    uptime_s: float
    down: tuple[str, ...]
    deaths: dict[str, int]
    processes: tuple[int, ...]
    requests: int | None
    at_work: int | None


def statuses(api_key: str | None = None) -> list[RunStatus]:
    """Of this user's runs on this machine, the oldest first; ``api_key``: for the adapter's metrics."""
    return [_status_of(record, api_key) for record in living_runs()]


def chosen(name: str | None) -> RunRecord:
    """The run of this name; without one, the only run, whose replicas do not count.

    Raises:
        LaunchError: There is none, or there are several to choose from.
    """
    runs = living_runs()
    names = ", ".join(record.name for record in runs)
    if not runs:
        raise LaunchError("no server of this user runs here (they are found in $TMPDIR, which must be that of `serve`)")
    if name is None:
        ids = {record.run_id for record in runs}
        wholes = [record for record in runs if record.group not in ids]
        if len(wholes) > 1:
            raise LaunchError(f"several servers run here: name one of {names}")
        return wholes[0]
    for record in runs:
        if record.name == name:
            return record
    raise LaunchError(f"no server is called {name}; here are: {names}")


def end(record: RunRecord, *, now: bool, timeout_s: float | None = None) -> bool:
    """Ask a run to end, and wait for it.

    Args:
        record: Of the run.
        now: Do not let requests under way end.
        timeout_s: Longest wait; None: as long as it takes.

    Returns:
        Whether it has ended.

    Raises:
        LaunchError: It is not this user's to end.
    """
    try:
        launcher = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return True
    try:
        signals = [signal.SIGTERM] * (2 if now else 1)
        for number in signals:
            signal.pidfd_send_signal(launcher, number)
            ended, _, _ = select.select([launcher], [], [], 0.5 if now else 0.0)  # two signals at once would be one
            if ended:
                return True
        return bool(select.select([launcher], [], [], timeout_s)[0])
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise LaunchError(f"process {record.pid} belongs to another user") from error
    finally:
        os.close(launcher)


def _status_of(record: RunRecord, api_key: str | None) -> RunStatus:
    state, figures = state_of(record), _figures(record.urls.get("adapter"), api_key)
    return RunStatus(
        record,
        state["status"],
        time.time() - record.started,
        tuple(state.get("down", ())),
        state.get("deaths", {}),
        tuple(sorted(marked_processes(record.run_id))),
        figures.get(_DONE),
        figures.get(_AT_WORK),
    )


def _figures(adapter_url: str | None, api_key: str | None) -> dict[str, int]:
    """The sums of the adapter's figures by name; {} where it does not tell."""
    if adapter_url is None:
        return {}
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    sums: Counter[str] = Counter({_DONE: 0, _AT_WORK: 0})
    try:
        page = httpx2.get(f"{adapter_url}/metrics", headers=headers, trust_env=False, timeout=_CALL_S, verify=False)
        page.raise_for_status()
        for family in text_string_to_metric_families(page.text):
            for sample in family.samples:
                sums[sample.name] += int(sample.value)
    except (httpx2.HTTPError, ValueError):
        return {}
    return sums
