"""Help texts as plain, aligned columns."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

_TITLES = {"Commands": "Verbs", "Parameters": "Flags"}
_INDENT = 2
_LABEL_WIDTH = 30
_WIDTH_MAX = 100


def plain(text: Any) -> str:
    """Return the characters of a text that may carry styles, its white space made single."""
    inner = getattr(text, "primary_renderable", text)
    return " ".join(str(getattr(inner, "plain", inner) or "").split())


class PlainHelp:
    """Prints usage, description and one aligned block of lines for each group of entries."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._width = min(_WIDTH_MAX, shutil.get_terminal_size().columns)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one group of entries."""
        del console, options
        entries = [entry for entry in panel.entries if entry.display_labels]
        if not entries:
            return
        title = plain(panel.title)
        self._print(f"{_TITLES.get(title, title)}:")
        for entry in entries:
            self._print(self._entry(entry))
        self._print("")

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the usage line."""
        del console, options
        if usage:
            self._print(f"Usage: {plain(usage)}\n")

    def render_description(
        self, console: Console, options: ConsoleOptions, description: Any
    ) -> None:
        """Print what the verb does."""
        del console, options
        if text := plain(description):
            self._print(textwrap.fill(text, self._width) + "\n")

    def _entry(self, entry: HelpEntry) -> str:
        label = ", ".join(entry.display_labels_with_metavar)
        text = plain(entry.description).removesuffix(".")
        head = " " * _INDENT + label
        lines = textwrap.wrap(text, max(self._width - _LABEL_WIDTH, 30)) or [""]
        below = [" " * _LABEL_WIDTH + line for line in lines]
        if len(head) + 1 < _LABEL_WIDTH:
            below[0] = head.ljust(_LABEL_WIDTH) + lines[0]
            return "\n".join(below).rstrip()
        return "\n".join([head, *below]).rstrip()

    def _print(self, text: str) -> None:
        print(text, file=self._stream)
