"""The pure-Python reference under uvloop: the catalogue names the loop."""

from contenders.reference import build

__all__ = ["build"]
