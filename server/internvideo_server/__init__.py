"""The library behind the Triton models of this repository; importable and tested without Triton."""
