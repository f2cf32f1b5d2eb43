"""A mixed load for as long as wanted, while processes are killed: nothing wrong, nothing lost in silence, nothing that grows.

python benchmarks/soak.py --minutes 20
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx2
import typer
from matplotlib.figure import Figure

from benchmarks.report import ROOT, surroundings
from internvideo_server.launch import RunningServer, start
from internvideo_server.settings import ServeSettings

_VICTIMS = ("preprocessing_0_0", "vit_0_0", "tensorrt_llm_0_0", "bin/tritonserver", "internvideo_client.adapter")
_SAMPLE_S = 5.0
_WARM_UP = 0.25  # share of the time before levels are compared
_GAUGES = ("internvideo_requests_in_flight", "internvideo_regions_in_use", "nv_trt_llm_request_metrics")


@dataclass
class Findings:
    """What happened.

    Attributes:
        outcomes: Kind of client and outcome -> how often.
        wrong: Good answers that differ from the one given alone.
        silent: Requests that ended without an answer and without a status.
        samples: Seconds, MiB of memory, descriptors, threads, MiB of shared memory.
        kills: Seconds and what was killed.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    samples: list[tuple[float, float, int, int, float]] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    gauges: dict[str, float] = field(default_factory=dict)

    def growth(self) -> dict[str, float]:
        """Share by which each level rose after the warm-up: the last quarter's median against the second's.

        Medians, since a level falls where something is dead and rises with each burst.
        """
        if len(self.samples) < 8:
            return {}
        warm = int(len(self.samples) * _WARM_UP)
        early, late = self.samples[warm : 2 * warm], self.samples[-warm:]
        names = ("memory", "descriptors", "threads", "shared memory")
        levels = ((median(s[i] for s in early), median(s[i] for s in late)) for i in range(1, 1 + len(names)))
        return {name: after / max(before, 1e-9) - 1 for name, (before, after) in zip(names, levels, strict=True)}


class Clients:
    """The clients of one soak, against one server."""

    def __init__(self, server: RunningServer, findings: Findings, seed: int) -> None:
        self._server, self._findings, self._random = server, findings, random.Random(seed)
        videos = sorted((ROOT / "examples" / "page").glob("*.mp4"))
        questions = ("Which way does the star move?", "Describe the video.", "What colour is the triangle?")
        self._questions = [
            [self._part(video, frames), {"type": "text", "text": question}]
            for video in videos
            for frames in (4, 8)
            for question in questions
        ] + [[{"type": "text", "text": text}] for text in ("hi", "What can you see?", "Name a colour.")]
        self._alone: list[str] = []

    def _part(self, video: Path, frames: int) -> dict[str, Any]:
        return {"type": "video_url", "video_url": {"url": video.as_uri(), "num_frames": frames}}

    def _body(self, number: int, **fields: Any) -> dict[str, Any]:
        content = self._questions[number]
        return {
            "model": "InternVideo2_5",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 24,
            "seed": 7,
            **fields,
        }

    async def learn(self, http: httpx2.AsyncClient) -> None:
        """The answers that are given alone."""
        for number in range(len(self._questions)):
            answer = await http.post("/v1/chat/completions", json=self._body(number))
            answer.raise_for_status()
            self._alone.append(answer.json()["choices"][0]["message"]["content"])

    async def run(self, http: httpx2.AsyncClient, until: float) -> None:
        """One client, a request after the other."""
        kinds = {self._whole: 5, self._stream: 8, self._slow: 1, self._leaves: 2, self._bad: 2, self._two_turns: 2}
        while time.monotonic() < until:
            kind = self._random.choices(list(kinds), list(kinds.values()))[0]
            name, number = kind.__name__.strip("_"), self._random.randrange(len(self._questions))
            try:
                outcome = await kind(http, number)
            except httpx2.HTTPError as error:  # the adapter itself was killed, or an answer was cut
                outcome = f"connection lost ({type(error).__name__})"
                if not self._recently_killed():
                    self._findings.silent.append(f"{name} {number}: {error!r}")
            self._findings.outcomes[name, outcome] += 1
            if outcome.startswith(("told", "connection")):
                await asyncio.sleep(self._random.uniform(0.2, 1.0))

    def _recently_killed(self) -> bool:
        return any(time.monotonic() - self.began - at < 60 for at, _ in self._findings.kills)

    began = 0.0

    def _check(self, number: int, text: str, name: str) -> str:
        if text != self._alone[number]:
            self._findings.wrong.append(f"{name} {number}: {text!r} instead of {self._alone[number]!r}")
            return "wrong"
        return "right"

    async def _whole(self, http: httpx2.AsyncClient, number: int) -> str:
        answer = await http.post("/v1/chat/completions", json=self._body(number))
        if answer.status_code != 200:
            return f"told ({answer.status_code})"
        return self._check(number, answer.json()["choices"][0]["message"]["content"], "whole")

    async def _events(self, http: httpx2.AsyncClient, number: int, pause_s: float = 0.0) -> AsyncGenerator[str]:
        async with http.stream("POST", "/v1/chat/completions", json=self._body(number, stream=True)) as answer:
            if answer.status_code != 200:
                yield f"told ({answer.status_code})"
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield line[6:]
                    await asyncio.sleep(pause_s)

    async def _stream(self, http: httpx2.AsyncClient, number: int, pause_s: float = 0.0) -> str:
        text, last = "", ""
        async with contextlib.aclosing(self._events(http, number, pause_s)) as events:
            async for last in events:
                if last.startswith("told"):
                    return last
                if last == "[DONE]":
                    return self._check(number, text, "stream")
                event = json.loads(last)
                if "error" in event:
                    return f"told ({event['error']['code']} event)"
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        self._findings.silent.append(f"stream {number}: ended after {last[:80]!r}")
        return "ended without [DONE]"

    async def _slow(self, http: httpx2.AsyncClient, number: int) -> str:
        return await self._stream(http, number, 0.05)

    async def _leaves(self, http: httpx2.AsyncClient, number: int) -> str:
        async with contextlib.aclosing(self._events(http, number)) as events:
            async for event in events:
                return event if event.startswith("told") else "left"
        return "left"

    async def _bad(self, http: httpx2.AsyncClient, number: int) -> str:
        bodies = (b"{", json.dumps(self._body(number, temperature=99)).encode(), json.dumps({"model": "none"}).encode())
        headers = {"Content-Type": "application/json"}
        answer = await http.post("/v1/chat/completions", content=self._random.choice(bodies), headers=headers)
        return "refused" if answer.status_code in (400, 404, 422) else f"told ({answer.status_code})"

    async def _two_turns(self, http: httpx2.AsyncClient, number: int) -> str:
        body = self._body(number)
        first = await http.post("/v1/chat/completions", json=body)
        if first.status_code != 200:
            return f"told ({first.status_code})"
        said = first.json()["choices"][0]["message"]
        body["messages"] += [said, {"role": "user", "content": "And what else?"}]
        second = await http.post("/v1/chat/completions", json=body)
        if second.status_code != 200:
            return f"told ({second.status_code})"
        return self._check(number, said["content"], "two turns")


async def soak(server: RunningServer, minutes: float, clients: int, kill_every_s: float, seed: int) -> Findings:
    """Load and kill one server.

    Args:
        server: A running one, of this process, with examples/page allowed.
        minutes: How long.
        clients: At once.
        kill_every_s: Seconds between two kills; 0: none.
        seed: Of the choices.
    """
    findings = Findings()
    load = Clients(server, findings, seed)
    limits = httpx2.Limits(max_connections=clients + 4, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(base_url=server.adapter_url, timeout=300, trust_env=False, limits=limits) as http:
        await load.learn(http)
        load.began = began = time.monotonic()
        until = began + 60 * minutes
        watching = asyncio.create_task(_watch(server, findings, began))
        killing = asyncio.create_task(_kill(server, findings, began, until, kill_every_s, seed)) if kill_every_s else None
        await asyncio.gather(*(load.run(http, until) for _ in range(clients)))
        if killing is not None:
            await killing
        for _ in range(600):
            with contextlib.suppress(httpx2.HTTPError):
                if (await http.get("/health/ready")).status_code == 200:
                    findings.gauges = await _gauges(server, http)
                    if not any(findings.gauges.values()):
                        break
            await asyncio.sleep(0.1)
        watching.cancel()
    return findings


async def _kill(server: RunningServer, findings: Findings, began: float, until: float, every_s: float, seed: int) -> None:
    order = random.Random(seed)
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        victim = order.choice(_VICTIMS)
        for pid in server.processes():
            with contextlib.suppress(OSError):
                if victim.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    findings.kills.append((time.monotonic() - began, victim))
                    os.kill(pid, signal.SIGKILL)
                    break


async def _watch(server: RunningServer, findings: Findings, began: float) -> None:
    while True:
        memory, descriptors, threads = 0.0, 0, 0
        for pid in server.processes():
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{pid}/status").read_text().splitlines()
                memory += int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024
                threads += int(next(line for line in status if line.startswith("Threads")).split()[1])
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        shared = sum(file.stat().st_size for file in server.segments() if file.exists()) / (1 << 20)
        findings.samples.append((time.monotonic() - began, memory, descriptors, threads, shared))
        await asyncio.sleep(_SAMPLE_S)


async def _gauges(server: RunningServer, http: httpx2.AsyncClient) -> dict[str, float]:
    """What must be 0 when nothing is under way."""
    pages = [(await http.get("/metrics")).text, (await http.get(server.metrics_url)).text]
    lines = [line for page in pages for line in page.splitlines() if line.startswith(_GAUGES)]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def report(findings: Findings, minutes: float, clients: int, command: str) -> str:
    """The findings in Markdown."""
    machine = surroundings("torch", "transformers", "nvidia-pytriton")
    where = f"{machine['cores']} cores ({machine['cpu']}), {machine['gpu'] or 'no GPU'}"
    lost = f"**{len(findings.wrong)} wrong answers, {len(findings.silent)} lost in silence**"
    gauges = ", ".join(f"`{name}` {value:g}" for name, value in findings.gauges.items()) or "none read"
    lines = [
        f"# Soak: {minutes:g} minutes, {clients} clients",
        "",
        f"`{command}`; {where}, commit {machine['commit'][:12]}.",
        "",
        f"{sum(findings.outcomes.values())} requests; {lost}; {len(findings.kills)} kills.",
        "",
        "| client | outcome | requests |",
        "|---|---|---:|",
        *(f"| {kind} | {outcome} | {count} |" for (kind, outcome), count in sorted(findings.outcomes.items())),
        "",
        "| killed after | what |",
        "|---:|---|",
        *(f"| {at:.0f} s | {what} |" for at, what in findings.kills),
        "",
        "| level | growth after the warm-up |",
        "|---|---:|",
        *(f"| {name} | {share:+.1%} |" for name, share in findings.growth().items()),
        "",
        f"Gauges at the end: {gauges}.",
    ]
    if findings.wrong or findings.silent:
        lines += ["", *(f"* {text}" for text in (*findings.wrong[:20], *findings.silent[:20]))]
    return "\n".join(lines) + "\n"


def draw(findings: Findings, file: Path) -> None:
    """Levels over time, kills as lines."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    names = ("memory, MiB", "descriptors", "threads", "shared memory, MiB")
    for axes, name, index in zip(figure.subplots(4, 1, sharex=True), names, range(1, 5), strict=True):
        axes.plot([sample[0] / 60 for sample in findings.samples], [sample[index] for sample in findings.samples])
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        for at, _ in findings.kills:
            axes.axvline(at / 60, color="tab:red", linewidth=0.6)
    axes.set_xlabel("minutes (red: a kill)")
    figure.savefig(file, dpi=100)


def main(
    minutes: Annotated[float, typer.Option(help="how long")] = 20.0,
    clients: Annotated[int, typer.Option(help="how many at once")] = 64,
    kill_every: Annotated[float, typer.Option(help="seconds between two kills; 0: none")] = 120.0,
    checkpoint: Annotated[Path | None, typer.Option(help="model directory (default: the small demo model)")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    seed: Annotated[int, typer.Option(help="of the choices")] = 1,
    out: Annotated[Path, typer.Option(help="the report; the plot lies beside it")] = ROOT / "benchmarks" / "results" / "soak.md",
) -> None:
    """Serve, load, kill, report; exit code 1 where an answer was wrong or lost."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = ServeSettings(
            checkpoint=checkpoint,
            device=device,
            port=0,
            triton_grpc_port=0,
            triton_metrics_port=0,
            allowed_local_media_path=(ROOT / "examples",),
            run_directory=Path(scratch) / "run",
            max_restarts=10_000,
            max_queue_size=256,
        )
        with start(settings) as server:
            findings = asyncio.run(soak(server, minutes, clients, kill_every, seed))
    command = f"python benchmarks/soak.py --minutes {minutes:g} --clients {clients} --kill-every {kill_every:g}"
    text = report(findings, minutes, clients, command)
    if findings.samples:
        out.with_suffix(".json").write_text(json.dumps({"samples": findings.samples, "kills": findings.kills}) + "\n")
        draw(findings, out.with_suffix(".png"))
        text += f"\n![levels over time]({out.with_suffix('.png').name})\n"
    out.write_text(text)
    typer.echo(text)
    sys.exit(bool(findings.wrong or findings.silent))


if __name__ == "__main__":
    typer.run(main)
