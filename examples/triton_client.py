"""Triton's own gRPC, without the adapter: stream from the ensemble. Usage: python triton_client.py VIDEO TOKENIZER [HOST:PORT]

VIDEO is a path on the server, below --allowed-local-media-path. TOKENIZER is the engine directory's tokenizer.json, the same for
each engine of a checkpoint (`python build_scripts/export_tokenizer.py CHECKPOINT --out FILE` makes one). The port is that of
`serve --triton-grpc-port`.
"""

import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from tritonclient.utils import np_to_triton_dtype

video, tokenizer = Path(sys.argv[1]).resolve().as_uri(), Tokenizer.from_file(sys.argv[2])
# OpenAI's messages as JSON text: a list of {"role", "content"}, the content a text or a list of parts.
parts = [{"type": "video_url", "video_url": {"url": video, "num_frames": 16}}, {"type": "text", "text": "Describe the video."}]
tensors = {  # each with a leading batch dimension of 1
    "messages": np.array([[json.dumps([{"role": "user", "content": parts}]).encode()]], np.object_),
    "request_output_len": np.array([[64]], np.int32),  # -1: what is left of the context
    "streaming": np.array([[True]]),  # false: one response with everything
}
inputs = [grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype)) for name, value in tensors.items()]
for tensor in inputs:
    tensor.set_data_from_numpy(tensors[tensor.name()])
responses: queue.Queue = queue.Queue()
with grpc.InferenceServerClient(sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1:8001") as client:
    client.start_stream(lambda result, error: responses.put((result, error)))
    # The end is told by a last response, which has no tensors, only a flag; it comes where it is asked for here.
    client.async_stream_infer("internvideo2_5", inputs, request_id="my-request-1", enable_empty_final_response=True)
    text, final = DecodeStream(skip_special_tokens=True), False
    while not final:
        result, error = responses.get(timeout=300)
        if error is not None:
            sys.exit(str(error))  # "[INVALID_ARGUMENT param=messages.0...] ...": the stream has ended
        ids = result.as_numpy("output_ids")  # new tokens only, without the end token; None in the last response
        for token in [] if ids is None else ids.reshape(-1).tolist():
            print(text.step(tokenizer, token) or "", end="", flush=True)  # None: a part of a character, more follows
        final = result.get_response().parameters["triton_final_response"].bool_param
print()
