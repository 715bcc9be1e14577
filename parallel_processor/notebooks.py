"""What is different in a Jupyter notebook: whoever interrupts a cell looks at it, and wants it to end."""

from __future__ import annotations

import math
import sys
from typing import Any

from parallel_processor.forks import FORKS_WAIT

_PATIENCE_S = 0.5
_BAR_FORMAT = "{percentage:3.0f}%{bar}{desc}"


def is_notebook() -> bool:
    """True in a Jupyter kernel, whatever shows its notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def patience_s(error: BaseException) -> float:
    """For how long a run that ``error`` ended waits for what is under way, at most.

    Half a second after a cell was interrupted: the answers that were just coming, and running the cell
    again asks for the others. Infinite otherwise: the run's own settings say it.
    """
    return _PATIENCE_S if isinstance(error, KeyboardInterrupt) and is_notebook() else math.inf


def notebook_bar() -> Any:
    """tqdm's bar for a notebook: a widget where ``ipywidgets`` is installed, else text."""
    with FORKS_WAIT:
        from tqdm import notebook, std  # for a bar only; see progress.py

    if notebook.IProgress is None:  # type: ignore[attr-defined]
        return std.tqdm

    class WidgetBar(notebook.tqdm):  # type: ignore[type-arg]
        """A widget that follows ``total``, which tqdm's own takes for final."""

        def __init__(self, **settings: Any) -> None:
            settings["bar_format"] = _BAR_FORMAT
            super().__init__(**settings)

        def display(self, *args: Any, **settings: Any) -> None:
            self.container.children[1].max = self.total
            super().display(*args, **settings)

    return WidgetBar
