"""Runs the `xqg` command from a checkout: `python cli.py …`."""

from xqg_qdrant.cli import main

if __name__ == "__main__":
    main()
