"""The command line, one file per sub-command.

Here: argument parsing, tables on the terminal, exit codes. Not here: anything a script would want to call, which
lives in the layers below. Modules of this package import torch and other heavy packages inside functions only,
so that ``fastff --help`` answers at once.
"""

from fastff.cli.root import app, main

__all__ = ["app", "main"]
