"""Pictures as a column: files in one blob, decoded when they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError


class Pictures:
    """A column [T, height, width, 3] uint8 RGB whose pictures are kept as JPEG or PNG files.

    `blob` [bytes] uint8 holds M files, file i from `offsets[i]` to `offsets[i + 1]` (int64,
    [M + 1]); row t shows file `rows[t]` (int64, [T]; [T, H] where a row is a history of H
    pictures: the column is [T, H, height, width, 3] then), so that a picture which several rows
    show is kept once. A file may be of any size: it is brought to `size` (height, width) as the
    live path does it, by images.decoded().

    Indexed like an array, along the first axes: what is more than one picture is a view, which
    decodes nothing; a single picture, take() and np.asarray() decode. Raises StorageError where a
    file cannot be decoded.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, blob: np.ndarray, offsets: np.ndarray, rows: np.ndarray, size: tuple[int, int]
    ):
        self.blob, self.offsets, self.rows = blob, offsets, rows
        self.size = (int(size[0]), int(size[1]))

    @classmethod
    def of(cls, files: Sequence[bytes], rows: np.ndarray, size: tuple[int, int]) -> Self:
        """Return a column whose row t shows `files[rows[t]]`; files that no row shows are left."""
        shape = np.shape(rows)
        shown, rows = np.unique(rows, return_inverse=True)
        kept = [files[number] for number in shown]
        offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
        blob = np.frombuffer(b''.join(kept), np.uint8)
        return cls(blob, offsets, rows.reshape(shape).astype(np.int64), size)

    @classmethod
    def concatenate(cls, parts: Sequence[Pictures]) -> Self:
        """Return one column of several, one after another. Raises StorageError for other sizes."""
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise StorageError(f'pictures: sizes {sorted(sizes)} do not make one column')
        files = np.cumsum([0, *(len(part.offsets) - 1 for part in parts)])
        bytes_ = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        ends = [part.offsets[1:] + start for part, start in zip(parts, bytes_[:-1], strict=True)]
        rows = [part.rows + start for part, start in zip(parts, files[:-1], strict=True)]
        return cls(
            np.concatenate([part.blob for part in parts]),
            np.concatenate([[0], *ends]).astype(np.int64),
            np.concatenate(rows).astype(np.int64),
            parts[0].size,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """[T, height, width, 3] or [T, H, height, width, 3] of the decoded pictures."""
        return *self.rows.shape, *self.size, 3

    @property
    def ndim(self) -> int:
        """How many axes `shape` has."""
        return self.rows.ndim + 3

    def __len__(self) -> int:
        return len(self.rows)

    def file(self, row: int) -> bytes:
        """Return the file that a row shows, as it is kept."""
        number = self.rows[row]
        return self.blob[self.offsets[number] : self.offsets[number + 1]].tobytes()

    def sized(self, size: tuple[int, int]) -> Pictures:
        """Return a view that decodes to another `size` (height, width)."""
        return Pictures(self.blob, self.offsets, self.rows, size)

    def __getitem__(self, index: slice | int | np.ndarray) -> Pictures | np.ndarray:
        """Return a view of several pictures; of one the picture [h, w, 3]."""
        rows = self.rows[index]
        view = Pictures(self.blob, self.offsets, rows, self.size)
        return np.asarray(view) if rows.ndim == 0 else view

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return the decoded pictures of `rows`, as np.ndarray.take does along its first axis."""
        return np.asarray(Pictures(self.blob, self.offsets, self.rows[rows], self.size))

    def astype(self, dtype: Any) -> Pictures | np.ndarray:
        """Return this column where it is uint8 that is asked for: it cannot be changed."""
        return self if np.dtype(dtype) == self.dtype else np.asarray(self, dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Decode all, for np.asarray()."""
        if copy is False:
            raise ValueError('pictures are decoded: there is no array that could be shared')
        numbers, places = np.unique(self.rows, return_inverse=True)
        decoded = np.empty((len(numbers), *self.size, 3), np.uint8)
        for picture, number in zip(decoded, numbers, strict=True):
            picture[:] = self._decoded(number)
        return decoded[places.reshape(self.rows.shape)].astype(dtype or np.uint8, copy=False)

    def _decoded(self, number: int) -> np.ndarray:
        from robot_rl.images import decoded  # OpenCV takes a while: only who looks imports it

        file = self.blob[self.offsets[number] : self.offsets[number + 1]]
        try:
            return decoded(file, (*self.size, 3))
        except ContractMismatch as error:
            raise StorageError(f'picture {number} of a column: {error}') from None
