# The OpenAI adapter and the command line, without torch and without a GPU. From the project's root:
#   docker build -f docker/client.Dockerfile -t internvideo-client .
FROM python:3.12-slim AS build
COPY pyproject.toml README.md LICENSE /src/
COPY client /src/client
COPY server /src/server
RUN python3 -m venv /opt/internvideo && /opt/internvideo/bin/pip install --no-cache-dir /src

FROM python:3.12-slim
COPY --from=build /opt/internvideo /opt/internvideo
ENV PATH=/opt/internvideo/bin:${PATH} PYTHONUNBUFFERED=1 HOME=/tmp
USER 1000:1000
WORKDIR /tmp
EXPOSE 9997
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:9997/health/ready', timeout=8)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "internvideo_client.adapter"]
CMD ["--host", "0.0.0.0", "--triton", "server:8001", "--tokenizer", "/engine/tokenizer.json"]
