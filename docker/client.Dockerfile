# The command line and the router, without torch and without a GPU. From the project's root:
#   docker build -f docker/client.Dockerfile -t internvideo-client .
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
COPY docker/requirements.client.lock /src/docker/
RUN python3 -m venv /opt/internvideo && \
    /opt/internvideo/bin/pip install --no-cache-dir --require-hashes --no-deps -r /src/docker/requirements.client.lock
COPY pyproject.toml README.md LICENSE /src/
COPY client /src/client
COPY server /src/server
COPY model_repository /src/model_repository
COPY examples /src/examples
COPY build_scripts/demo_model /src/build_scripts/demo_model
RUN /opt/internvideo/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src

FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/internvideo /opt/internvideo
ENV PATH=/opt/internvideo/bin:${PATH} PYTHONUNBUFFERED=1 HOME=/tmp
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["internvideo"]
CMD ["--help"]
