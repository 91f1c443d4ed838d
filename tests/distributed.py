"""Run any function on n gloo ranks: real processes, on one machine."""

from parallel.local import run_distributed

__all__ = ["run_distributed"]
