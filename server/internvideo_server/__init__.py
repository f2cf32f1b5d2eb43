"""The library behind the Triton models of this repository; importable and tested without Triton."""

__version__ = "0.1.0"
