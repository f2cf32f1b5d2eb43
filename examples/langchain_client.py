"""LangChain (pip install langchain-openai). Usage: python langchain_client.py VIDEO [URL]"""

import base64
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:9997"
model = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="InternVideo2_5", temperature=0)
data = "data:video/mp4;base64," + base64.b64encode(Path(sys.argv[1]).read_bytes()).decode()
content = [
    {"type": "video_url", "video_url": {"url": data, "num_frames": 16}},
    {"type": "text", "text": "Describe the video."},
]
for part in model.stream([HumanMessage(content=content)]):
    print(part.content, end="", flush=True)
print()
