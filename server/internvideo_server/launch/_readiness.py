"""Wait until what was started answers."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import httpx2

from ._artifacts import cache_directory
from ._errors import LaunchError
from ._processes import Keeper, tail
from ._progress import Progress


def wait_until_ready(
    keeper: Keeper, urls: dict[str, str], logs: dict[str, Path], models: list[str], timeout_s: float, progress: Progress
) -> None:
    """Wait until each URL answers 200, in order.

    Args:
        keeper: Of the programs.
        urls: Program -> health URL.
        logs: Program -> log file; Triton's tells how many models are loaded.
        models: Names of the models, for the progress.
        timeout_s: For everything together.
        progress: Where to report.

    Raises:
        LaunchError: A program ended, or the time is over; the message has the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    loaded: set[str] = set()
    with httpx2.Client(trust_env=False, timeout=5.0) as client:  # no proxy stands between a machine and itself
        for name, url in urls.items():
            while (refusal := _refusal(client, url)) is not None:
                progress.check()
                if ended := keeper.poll():
                    raise LaunchError(f"{ended}{_log_for_error(logs.get(ended.name, logs[name]))}")
                if time.monotonic() > deadline:
                    raise LaunchError(f"{name} was not ready after {timeout_s:g} s ({refusal}){_log_for_error(logs[name])}")
                log = logs[name].read_text(errors="replace") if logs[name].exists() else ""
                if new := {model for model in models if f"successfully loaded '{model}'" in log} - loaded:
                    loaded |= new
                    progress.report(f"loaded {', '.join(sorted(new))} ({len(loaded)} of {len(models)} models)")
                time.sleep(0.1)
            progress.report(f"{name} is ready")


def _refusal(client: httpx2.Client, url: str) -> str | None:
    """Why a health URL does not answer 200, None when it does."""
    try:
        answer = client.get(url)
    except httpx2.TransportError as error:
        return str(error)
    return None if answer.status_code == httpx2.codes.OK else f"HTTP {answer.status_code} {answer.text[:500]}".strip()


def _log_for_error(log: Path) -> str:
    """The end of a log; the whole of it is kept in the cache, since the run's directory goes."""
    if not log.exists():
        return ""
    try:
        kept = cache_directory() / "logs" / f"last-failure-{log.name}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
    except (OSError, LaunchError):  # nowhere to keep it
        return tail(log)
    return f"{tail(log)}\n(the whole log: {kept})"
