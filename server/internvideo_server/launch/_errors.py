"""The launcher's one error."""


class LaunchError(RuntimeError):
    """The server cannot be started; the message says what is wrong and what to do about it, for the person at the terminal."""
