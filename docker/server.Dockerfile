# The server on NVIDIA's container: Triton 2.71 with TensorRT-LLM 1.2.1 (Python 3.12, CUDA 13.1). From the project's root:
#   docker build -f docker/server.Dockerfile -t internvideo-server .
# With its digest it is this image and no other: --build-arg BASE=NAME:TAG@sha256:... (docs/security.md).
ARG BASE=nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
FROM ${BASE}

ENV INTERNVIDEO_HOME=/opt/internvideo/src \
    INTERNVIDEO_CACHE=/var/cache/internvideo \
    # The image's own interpreter, for convert.py.
    TRTLLM_PYTHON=/opt/venv-tritonserver/bin/python3 \
    # PMIx's default data store fails in containers.
    PMIX_MCA_gds=hash \
    PYTHONUNBUFFERED=1

USER root
COPY docker/overlay.py docker/requirements.server.txt docker/requirements.server.lock /opt/internvideo/src/docker/
# Nothing of the image is replaced: what it lacks goes into an environment over it. fails where that cannot be (overlay.py).
RUN python3 /opt/internvideo/src/docker/overlay.py /opt/internvideo/venv \
      --requirements /opt/internvideo/src/docker/requirements.server.txt \
      --lock /opt/internvideo/src/docker/requirements.server.lock \
      --source /opt/internvideo/src/server --source /opt/internvideo/src/client \
    && mkdir -p /var/cache/internvideo /checkpoint /engine /media \
    && chown 1000:1000 /var/cache/internvideo
# First on PATH: Triton's Python models run with the first python3.
ENV PATH=/opt/internvideo/venv/bin:${PATH}

COPY docker/entrypoint.sh /opt/internvideo/src/docker/
COPY build_scripts /opt/internvideo/src/build_scripts
COPY model_repository /opt/internvideo/src/model_repository
COPY server /opt/internvideo/src/server
COPY client /opt/internvideo/src/client
COPY examples /opt/internvideo/src/examples
# COPY keeps the modes of a checkout, which a umask of 077 makes private. Imports fail here rather than at the first start.
RUN chmod -R a+rX /opt/internvideo/src && python3 -c 'import internvideo_client.adapter, internvideo_server.launch, internvideo_server.preprocessing.pipeline, internvideo_server.vit.embedder'

USER 1000:1000
WORKDIR /tmp
ENV HOME=/tmp
EXPOSE 9997
# The adapter is ready when every model of the chain answers; loading an engine takes minutes.
HEALTHCHECK --interval=15s --timeout=10s --start-period=15m --retries=4 \
    CMD ["python3", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:9997/health/ready', timeout=8)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/internvideo/src/docker/entrypoint.sh"]
CMD ["serve", "--host", "0.0.0.0", "--device", "cuda", "--checkpoint", "/checkpoint", "--engine", "/engine", \
     "--ready-timeout", "900", "--allowed-local-media-path", "/media"]
