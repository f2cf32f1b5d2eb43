# The server on a CPU, with the demo model: to try the API, or several replicas (compose.scale.yaml). From the project's root:
#   docker build -f docker/cpu.Dockerfile -t internvideo-cpu .
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
COPY docker/requirements.cpu.lock /src/docker/
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/internvideo && \
    /opt/internvideo/bin/pip install --no-cache-dir --require-hashes --no-deps -r /src/docker/requirements.cpu.lock && \
    # Without a hash: it can be a CPU build, where pip is given an index of such: --build-arg PIP_INDEX_URL=...
    /opt/internvideo/bin/pip install --no-cache-dir torch==2.11.0
COPY pyproject.toml README.md LICENSE /src/
COPY client /src/client
COPY server /src/server
COPY model_repository /src/model_repository
COPY examples /src/examples
COPY build_scripts/demo_model /src/build_scripts/demo_model
RUN /opt/internvideo/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM ${BASE}
COPY --from=build /opt/internvideo /opt/internvideo
ENV PATH=/opt/internvideo/bin:${PATH} PYTHONUNBUFFERED=1 HOME=/tmp
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["internvideo"]
CMD ["serve", "--host", "0.0.0.0", "--device", "cpu"]
