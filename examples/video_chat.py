"""The project's own client: a conversation about a video. Usage: python video_chat.py VIDEO [URL]"""

import sys

from internvideo_client import ApiError, VideoChat

video = sys.argv[1]  # a local file, which is sent along, or a URL
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:9997"

chat = VideoChat(url)  # api_key="..." where the server wants one
try:
    answer = chat.ask(video, "Describe the video.", num_frames=16)
    print(answer.text, answer.usage["prompt_tokens"], answer.timings["frames"])

    for text in chat.ask(None, "Which shape is green?", stream=True, max_tokens=32):  # goes on about the same video
        print(text, end="", flush=True)
    print()

    clip = VideoChat(url, system="Answer in Chinese.").ask([video], "视频里有什么？", start=0.5, end=2.0)
    print(clip.text)
except ApiError as error:  # the server's words: what is wrong, and what to do
    sys.exit(f"{error.status}: {error.message}")
