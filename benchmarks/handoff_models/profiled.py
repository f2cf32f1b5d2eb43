"""Counts what crosses between host and GPUs in this process, the server's own copies included."""

import json
import tempfile

import torch


class Profiler:
    """Megabytes by kind of copy (``DtoH``, ``HtoD``, ``PtoP``, ``DtoD``) between ``start`` and ``stop``."""

    def start(self):
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()

    def stop(self):
        torch.cuda.synchronize()
        self._profile.stop()
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            self._profile.export_chrome_trace(file.name)
            events = json.load(open(file.name))["traceEvents"]
        sums = {}
        for event in events:
            if event.get("name", "").startswith("Memcpy "):
                kind = event["name"].split()[1]
                sums[kind] = sums.get(kind, 0) + event["args"]["bytes"] / 1e6
        return sums
