#!/bin/sh
# The launcher as a container: `serve`, `tritonserver`, `doctor`, `chat` and `demo` are internvideo's commands, `build` makes an engine
# of TensorRT-LLM and `export` one for vLLM, anything else is run as it is.
set -eu

# NVIDIA's own entry point first, where there is one: it sets up CUDA forward compatibility.
nvidia=/opt/nvidia/nvidia_entrypoint.sh
if [ -x "$nvidia" ] && [ -z "${INTERNVIDEO_ENTERED:-}" ]; then
  INTERNVIDEO_ENTERED=1 exec "$nvidia" "$0" "$@"
fi

# OpenMPI was moved after it was built and does not find its files by itself; TensorRT-LLM initialises MPI even for one GPU.
if [ -z "${OPAL_PREFIX:-}" ]; then
  for prefix in /opt/hpcx/ompi /usr/local/mpi; do
    if [ -d "$prefix/share/openmpi" ]; then
      export OPAL_PREFIX="$prefix"
      break
    fi
  done
fi

case "${1:-serve}" in
  serve | tritonserver | doctor | chat | demo)
    exec internvideo "${@:-serve}"
    ;;
  build)
    shift
    exec python3 "${INTERNVIDEO_HOME:?}/build_scripts/build.py" "$@"
    ;;
  export)
    shift
    exec python3 "${INTERNVIDEO_HOME:?}/build_scripts/export_llm.py" "$@"
    ;;
  *)
    exec "$@"
    ;;
esac
