"""Runs the xqg command with a clock that is wrong by so many seconds: shifted_clock.py SECONDS ARGUMENT…"""

from __future__ import annotations

import sys
import time


def main(seconds: str, *arguments: str) -> None:
    """Run the command; see the module."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + float(seconds)
    time.time_ns = lambda: right_ns() + int(float(seconds) * 1e9)
    from xqg_qdrant.cli import main as xqg

    xqg(list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
