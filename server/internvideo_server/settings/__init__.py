"""Every setting, once: name, default, unit, bounds and help.

From these models come the command lines, the ``parameters`` of the rendered config.pbtxt files and what the models read of
them, the environment variables, the chart's schema and docs/settings.md.
"""

from ._command_line import (
    SettingsError,
    arguments_of,
    build,
    environment_of,
    flag,
    groups,
    limits_of,
    options_from,
    secrets_of,
    shown_default,
    unit_of,
    variable,
)
from ._models import (
    AdapterSettings,
    Dtype,
    EngineSettings,
    PreprocessingSettings,
    RepositorySettings,
    ServeSettings,
    VideoReader,
    VitQuantization,
    VitSettings,
    VllmSettings,
)
from ._parameters import from_parameters, to_parameters
from ._router import RouterSettings

__all__ = [
    "AdapterSettings",
    "Dtype",
    "EngineSettings",
    "PreprocessingSettings",
    "RepositorySettings",
    "RouterSettings",
    "ServeSettings",
    "SettingsError",
    "VideoReader",
    "VitQuantization",
    "VitSettings",
    "VllmSettings",
    "arguments_of",
    "build",
    "environment_of",
    "flag",
    "from_parameters",
    "groups",
    "limits_of",
    "options_from",
    "secrets_of",
    "shown_default",
    "to_parameters",
    "unit_of",
    "variable",
]
