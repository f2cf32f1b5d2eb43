"""The openai package: streamed, with token counts and timings. Usage: python openai_client.py VIDEO [URL]"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

video = Path(sys.argv[1])
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:9997"
client = OpenAI(base_url=f"{url}/v1", api_key="none")  # the server's key, where it has one

# A file goes along as a data: URL; large ones are uploaded once (client.files.create(file=..., purpose="vision")) and named
# "file-id:ID"; "file:///..." is a file on the server, below --allowed-local-media-path.
data = "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode()
content = [
    {"type": "video_url", "video_url": {"url": data, "num_frames": 16}},
    {"type": "text", "text": "Describe the video."},
]
stream = client.chat.completions.create(
    model="InternVideo2_5",
    messages=[{"role": "user", "content": content}],  # type: ignore[list-item]
    max_tokens=64,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print("\n", chunk.usage.prompt_tokens, chunk.usage.model_extra["internvideo"])
