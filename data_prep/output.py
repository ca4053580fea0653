"""Plain lines on stdout, a progress bar on stderr where a person is watching."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def say(line: str) -> None:
    """Print one line as it is: no markup, no colours, no wrapping."""
    Console(markup=False, highlight=False, emoji=False, soft_wrap=True).print(line)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over `total` images; gives the function that moves it on."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda images: bar.advance(task, images)
