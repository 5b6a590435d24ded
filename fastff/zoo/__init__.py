"""Students shipped with the package.

Here: their files, finding one by name, model cards. Not here: reading model files (:mod:`fastff.checkpoint`), or how an
entry is made and judged (``bench/zoo.py``).
"""

from fastff.zoo.card import Summary, render_card, summarize_header
from fastff.zoo.names import find_shipped, list_shipped, resolve_model

__all__ = [
    "Summary",
    "find_shipped",
    "list_shipped",
    "render_card",
    "resolve_model",
    "summarize_header",
]
