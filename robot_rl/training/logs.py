"""What a run says: metrics.jsonl for machines, TensorBoard and a progress bar for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS = 'metrics.jsonl'


class MetricsLog:
    """Appends rows to DIR/metrics.jsonl and to DIR/tensorboard.

    Rows past `steps`, which a killed run wrote after its last checkpoint, are dropped; `counted`
    is what a row calls them.
    """

    def __init__(self, folder: Path, steps: int, counted: str = 'env_steps'):
        # Imported here: it takes a second, and evaluation and export have no use for it.
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._counted = folder / METRICS, counted
        kept = [row for row in read_metrics(self._path) if row[counted] <= steps]
        partial = self._path.with_name(self._path.name + '.partial')
        partial.write_text(''.join(json.dumps(row) + '\n' for row in kept), encoding='utf-8')
        os.replace(partial, self._path)
        self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115, closed in close()
        self._board = SummaryWriter(str(folder / 'tensorboard'), purge_step=steps + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it is on disk's way when this returns."""
        self._file.write(json.dumps(row, allow_nan=False) + '\n')
        self._file.flush()
        for name, value in row.items():
            if name != self._counted:
                self._board.add_scalar(name, value, row[self._counted])

    def close(self) -> None:
        """Close both."""
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class ProgressBar:
    """Steps done of all and the last evaluation, on stderr: a bar, or lines where it is a file."""

    def __init__(self, title: str, total: int):
        self._title, self._total, self._done = title, total, 0
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn('{task.fields[note]}'),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, note='')

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, done: int) -> None:
        """Move the bar."""
        self._done = done
        self._progress.update(self._task, completed=done)

    def warn(self, text: str) -> None:
        """Print one line beside the bar."""
        self._console.print(f'robot-rl: {text}', highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Say what an evaluation gave."""
        self._progress.update(self._task, note=text)
        if not self._console.is_terminal:
            self._console.print(f'{self._title}: {self._done}/{self._total}, {text}')
