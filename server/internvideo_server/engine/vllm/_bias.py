"""A bias over the whole vocabulary as vLLM's two fields for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from internvideo_server.errors import invalid

_MOST_BIASES = 1024  # vLLM's
_FORBIDS = -1e8  # as -inf does: no logit comes near, and clients that fear NaN in penalties write -1e9


def bias_fields(bias: npt.NDArray[np.float32] | None) -> dict[str, Any]:
    """A few biases, and a list of what is allowed where most is forbidden.

    Args:
        bias: float32 [vocabulary], added to the logits; None: none.

    Raises:
        ValueError: It changes more tokens than vLLM takes.
    """
    if bias is None:
        return {}
    found: dict[str, Any] = {}
    allowed = np.flatnonzero(bias > _FORBIDS)
    if len(allowed) < len(bias) // 2:
        found["allowed_token_ids"] = allowed.tolist()
        changed = allowed[bias[allowed] != 0]
    else:
        changed = np.flatnonzero(bias)
    if len(changed) > _MOST_BIASES:
        raise ValueError(invalid(f"{len(changed)} tokens have a bias, vLLM takes {_MOST_BIASES}", "logit_bias").text)
    if len(changed):
        found["logit_bias"] = {int(i): float(bias[i]) for i in changed}
    return found
