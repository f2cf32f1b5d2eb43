#!/usr/bin/env bash
# curl: upload a video once, ask about it twice. Usage: ask.sh VIDEO [URL]
set -euo pipefail
video=$1 url=${2:-http://127.0.0.1:9997}

# With a key: add -H "Authorization: Bearer $KEY" to each call.
id=$(curl --silent --fail-with-body "$url/v1/files" -F purpose=vision -F "file=@$video" | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')

for question in "Describe the video." "视频里有什么？"; do
  curl --silent --fail-with-body --no-buffer "$url/v1/chat/completions" -H "Content-Type: application/json" -d '{
    "model": "InternVideo2_5", "max_tokens": 64,
    "messages": [{"role": "user", "content": [
      {"type": "video_url", "video_url": {"url": "file-id:'"$id"'", "num_frames": 16}},
      {"type": "text", "text": "'"$question"'"}]}]}' |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'
done
curl --silent --fail-with-body -X DELETE "$url/v1/files/$id" >/dev/null
