"""Engines of several GPUs: one tritonserver per rank under mpirun, the first of which leads.

Rank 0 serves the whole repository. Each other rank loads ``tensorrt_llm`` alone; there the backend recognises that it does not
lead, stays inside the loading of the model and works for rank 0 until that ends. So these ranks never come to open a port, and
take the same flags.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ._errors import LaunchError

LANGUAGE_MODEL = "tensorrt_llm"
# OpenMPI looks for its own files where it was built; in NVIDIA's images it was moved, and some of them do not say so.
_OPENMPI_PREFIXES = ("/opt/hpcx/ompi", "/usr/local/mpi")
_LEADS_ONLY = ("--load-model=", "--model-control-mode=", "--cuda-memory-pool-byte-size=", "--backend-config=python,")


def mpi_command(command: Sequence[str], ranks: int, shm_prefix: str, exit_s: int, environ: Mapping[str, str]) -> list[str]:
    """The command line that runs ``command`` as rank 0 and what rank 0 needs as the others.

    Args:
        command: tritonserver's, for one process.
        ranks: How many.
        shm_prefix: Begins the names of the run's shared-memory segments; each rank adds its number.
        exit_s: Seconds that rank 0 takes to end in order; mpirun would kill it one second after SIGTERM.
        environ: Its PATH is searched for mpirun.

    Raises:
        LaunchError: There is no mpirun.
    """
    if ranks == 1:
        return list(command)
    if shutil.which("mpirun", path=environ.get("PATH")) is None:
        raise LaunchError(
            f"the engine has {ranks} ranks, which needs mpirun: it comes with NVIDIA's container (PATH has none); "
            "Debian/Ubuntu: `apt install openmpi-bin`"
        )
    # By its name alone: called by its path it puts its own folder, and so perhaps another python3, before the rest of PATH.
    # Bound to one core, as is the default for two ranks, rank 0 would decode, preprocess and serve on that core alone.
    line = ["mpirun", "--bind-to", "none", "--mca", "odls_base_sigkill_timeout", str(exit_s + 2)]
    if os.geteuid() == 0:
        line.append("--allow-run-as-root")
    shared = [part for part in command if not part.startswith(_LEADS_ONLY)]
    for rank in range(ranks):
        own = [f"--backend-config=python,shm-region-prefix-name={shm_prefix}rank{rank}_"]
        if rank == 0:
            arguments = [part for part in command if not part.startswith("--backend-config=python,")]
        else:
            arguments = [*shared, "--model-control-mode=explicit", f"--load-model={LANGUAGE_MODEL}"]
        line += [":"] if rank else []
        line += ["-n", "1", *arguments, *own]
    return line


def mpi_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to add for TensorRT-LLM, which initialises MPI with one rank, too; what is set already stays.

    ``PMIX_MCA_gds=hash``: the default data store of PMIx fails in containers ("MPI_Init_thread" errors).
    """
    added = {"PMIX_MCA_gds": "hash"}
    for prefix in _OPENMPI_PREFIXES:
        if (Path(prefix) / "share" / "openmpi").is_dir():
            added["OPAL_PREFIX"] = prefix
            break
    return {name: value for name, value in added.items() if name not in environ}
