"""The Grafana dashboard, as a list of panels: ``python -m build_scripts.grafana_dashboard`` writes its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parents[1] / "docker" / "monitoring" / "grafana" / "dashboards" / "internvideo.json"

_RATE = "[$__rate_interval]"
_HERE = 'instance=~"$instance"'
_QUANTILE = f"histogram_quantile({{}}, sum by (le) (rate(internvideo_time_to_first_token_seconds_bucket{{{{{_HERE}}}}}{_RATE})))"


def _per_second(metric: str, by: str = "", labels: str = _HERE) -> str:
    total = f"sum by ({by})" if by else "sum"
    return f"{total} (rate({metric}{{{labels}}}{_RATE}))"


def _mean(seconds: str, count: str) -> str:
    return f"{_per_second(seconds)} / {_per_second(count)}"


_HITS = _per_second("internvideo_cache_hits_total", "cache")
_MISSES = _per_second("internvideo_cache_misses_total", "cache")
_MISSES_BY_KIND = _per_second("internvideo_cache_misses_total", "cache, kind")

#: Row -> panels: title, unit, and each query with its legend. Triton's page has another port, so another instance.
PANELS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Requests": [
        ("Requests by status", "reqps", {_per_second("internvideo_requests_total", "status"): "{{status}}"}),
        ("At work", "short", {f"sum by (instance) (internvideo_requests_in_flight{{{_HERE}}})": "{{instance}}"}),
        ("Time to first token", "s", {_QUANTILE.format(share): f"{share:.0%}" for share in (0.5, 0.95, 0.99)}),
        (
            "Tokens",
            "short",
            {
                _per_second("internvideo_prompt_tokens_total"): "prompt, per second",
                _per_second("internvideo_completion_tokens_total"): "generated, per second",
            },
        ),
    ],
    "Stages": [
        (
            "Work of each stage (busy workers)",
            "short",
            {
                _per_second("internvideo_fetch_seconds_total"): "fetch",
                _per_second("internvideo_decode_seconds_total"): "decode",
                _per_second("internvideo_vision_seconds_total"): "vision tower",
            },
        ),
        (
            "Time for a frame",
            "s",
            {
                _mean("internvideo_decode_seconds_total", "internvideo_frames_decoded_total"): "decode",
                _mean("internvideo_vision_seconds_total", "internvideo_vision_frames_total"): "vision tower",
            },
        ),
        (
            "Requests that wait (seconds waited, per second)",
            "short",
            {_per_second("internvideo_queue_seconds_total", "model"): "{{model}}"},
        ),
        (
            "Triton's queues",
            "short",
            {f"sum by (model) (nv_inference_pending_request_count{{{_HERE}}})": "{{model}}"},
        ),
    ],
    "Media and caches": [
        (
            "Frames per second",
            "short",
            {
                _per_second("internvideo_frames_delivered_total"): "asked about",
                _per_second("internvideo_frames_decoded_total"): "decoded",
                _per_second("internvideo_vision_frames_total"): "through the tower",
                _per_second("internvideo_frames_damaged_total"): "damaged",
            },
        ),
        (
            "Cache hits",
            "percentunit",
            {f"{_HITS} / ({_HITS} + {_MISSES})": "{{cache}}"},
        ),
        (
            "Cache misses by kind (share of all looks)",
            "percentunit",
            {f"{_MISSES_BY_KIND} / on (cache) group_left () ({_HITS} + {_MISSES})": "{{cache}}: {{kind}}"},
        ),
        ("Cache sizes", "bytes", {f"sum by (cache) (internvideo_cache_bytes{{{_HERE}}})": "{{cache}}"}),
        ("Media fetched", "Bps", {_per_second("internvideo_fetch_bytes_total"): "bytes per second"}),
    ],
    "Health and GPU": [
        ("Serving", "short", {f"internvideo_serving{{{_HERE}}}": "{{instance}}"}),
        (
            "Deaths of parts, in an hour",
            "short",
            {f"sum by (name) (increase(internvideo_deaths_total{{{_HERE}}}[1h]))": "{{name}}"},
        ),
        ("GPU busy", "percentunit", {f"nv_gpu_utilization{{{_HERE}}}": "{{gpu_uuid}}"}),
        ("GPU memory", "bytes", {f"nv_gpu_memory_used_bytes{{{_HERE}}}": "{{gpu_uuid}}"}),
    ],
}


def dashboard() -> dict[str, Any]:
    """Grafana's document."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, content in PANELS.items():
        panels.append(
            {"type": "row", "title": row, "collapsed": False, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []}
        )
        for number, (title, unit, queries) in enumerate(content):
            panels.append(
                {
                    "type": "timeseries",
                    "title": title,
                    "datasource": {"type": "prometheus", "uid": "${source}"},
                    "gridPos": {"x": 6 * number, "y": top + 1, "w": 6, "h": 8},
                    "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                    "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
                    "targets": [
                        {"refId": "ABCDEFGH"[at], "expr": query, "legendFormat": legend}
                        for at, (query, legend) in enumerate(queries.items())
                    ],
                }
            )
        top += 9
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    instances = {"query": 'label_values(up{job=~"internvideo-.*"}, instance)', "refId": "instances"}
    return {
        "uid": "internvideo",
        "title": "InternVideo2.5",
        "tags": ["internvideo"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "label": "Instance",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${source}"},
                    "query": instances,
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def main() -> None:
    """Write it."""
    DASHBOARD.parent.mkdir(parents=True, exist_ok=True)
    DASHBOARD.write_text(json.dumps(dashboard(), indent=1) + "\n")


if __name__ == "__main__":
    main()
