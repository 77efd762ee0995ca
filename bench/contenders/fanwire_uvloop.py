"""fanwire under uvloop: the catalogue names the loop."""

from contenders.fanwire import build

__all__ = ["build"]
