"""Watch a camera, or a recording that still grows: each new clip is a turn of one conversation, so only its frames are new work.

Usage: python watch.py SOURCE [URL] [--every SECONDS] [--question TEXT] [--keep TURNS]

SOURCE is a folder into which something writes clips in the order of their names (the newest is asked about when the next has
begun; clips have to stay while they are asked about), or what ffmpeg reads: a camera (rtsp://...) or a growing file (.ts or
.mkv), which ffmpeg then cuts at key frames. Ctrl-C ends it.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from internvideo_client import VideoChat

parser = argparse.ArgumentParser()
parser.add_argument("source")
parser.add_argument("url", nargs="?", default="http://127.0.0.1:9997")
parser.add_argument("--every", type=float, default=5.0)
parser.add_argument("--question", default="What happens now?")
parser.add_argument("--keep", type=int, default=20)
options = parser.parse_args()


def cut(source: str, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Have ffmpeg write a new clip every so many seconds; the pictures are copied, not encoded again."""
    programs = []
    if Path(source).exists():  # at a file's end ffmpeg would stop, tail waits for more
        programs.append(subprocess.Popen(["tail", "-c", "+1", "-f", source], stdout=subprocess.PIPE))
    name, given = ("-", programs[0].stdout) if programs else (source, subprocess.DEVNULL)
    wanted = ["-f", "segment", "-segment_time", str(options.every), "-reset_timestamps", "1", str(folder / "%06d.ts")]
    command = ["ffmpeg", "-v", "error", "-i", name, "-map", "0:v:0", "-c", "copy", *wanted]
    return [*programs, subprocess.Popen(command, stdin=given)]


def watch(folder: Path, cutters: list[subprocess.Popen[bytes]]) -> None:
    """Ask about each clip that is whole: another has begun after it, or nothing writes any more."""
    chat, seen = VideoChat(options.url), set[Path]()
    while True:
        over = any(cutter.poll() is not None for cutter in cutters)
        clips = sorted(path for path in folder.iterdir() if path.is_file())
        for clip in clips if over else clips[:-1]:
            if clip in seen:
                continue
            seen.add(clip)
            answer = chat.ask(clip, options.question, num_frames=16, max_tokens=64)
            new = answer.timings["frames"] - answer.timings["cached_frames"]
            print(f"{clip.name}: {answer.text} ({new} of {answer.timings['frames']} frames were new)", flush=True)
            if len(chat.messages) > 2 * 2 * options.keep:  # half of them at once: what is left is then read anew by the
                del chat.messages[: -2 * options.keep]  # language model (not by the decoder or the tower), so do it rarely
        if over:
            return
        time.sleep(options.every / 10)


with tempfile.TemporaryDirectory() as temporary:
    folder = Path(options.source)
    cutters = [] if folder.is_dir() else cut(options.source, folder := Path(temporary))
    try:
        watch(folder, cutters)
    except KeyboardInterrupt:
        pass
    finally:
        for cutter in cutters:
            cutter.terminate()
            cutter.wait()
    if cutters and not any(folder.iterdir()):
        raise SystemExit(f"no clip came from {options.source}")
