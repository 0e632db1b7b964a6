"""Windows of a convolution, of which the last down and along may hang over the ifmap's edge.

SCALE-Sim reads nothing beyond the edge, so that the last ifmap read of a layer may come earlier than that of a GEMM of
the same size. Which windows hang tells when, without a walk over them: only those of the last row or column do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from octo_exp.workload import Gemm


class Axis(NamedTuple):
    """Windows along one axis of an ifmap.

    Attributes:
        positions: how many there are.
        size: elements of one.
        last: elements of the last one that lie on the ifmap, perhaps none.
        touched: elements of the ifmap that some window holds.

    """

    positions: int
    size: int
    last: int
    touched: int

    @classmethod
    def of(cls, extent: int, size: int, stride: int) -> "Axis":
        """The windows of `size` <= extent at every `stride`-th element, until one reaches the edge."""
        positions = -(-(extent - size) // stride) + 1
        last = max(0, min(size, extent - (positions - 1) * stride))
        return cls(positions, size, last, (positions - 1) * min(stride, size) + last)

    @property
    def hangs(self) -> bool:
        """Whether the last window passes the edge."""
        return self.last < self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution(Gemm):
    """A GEMM whose rows of a are windows, in rows of `along.positions`; an element is (row, column, channel).

    Attributes:
        down: windows along the ifmap's height.
        along: windows along its width.
        channels: channels of a window.

    """

    down: Axis
    along: Axis
    channels: int

    @property
    def hangs(self) -> bool:
        """Whether a window passes the ifmap's edge."""
        return self.down.hangs or self.along.hangs

    def last_read(self, dataflow: str, rows: int, cols: int, lines: int) -> int:
        """Cycles until the last ifmap read, that one included, in folds of so many lines on rows x cols PEs."""
        if dataflow == "os":
            fold, first = self._last_fold(rows)
            reads = [window - first + last for window, last in self._last_elements(first, rows)]
            return (-(-self.n // cols) * -(-self.m // rows) - -(-self.m // rows) + fold) * lines + max(reads) + 1
        k_folds = -(-self.k // rows)
        if dataflow == "ws":
            first = (k_folds - 1) * rows
            reads = [window + last - first for window, last in self._last_elements(0, self.m) if last >= first]
            return (-(-self.n // cols) * k_folds - 1) * lines + rows + max(reads) + 1
        fold, first = self._last_fold(cols)
        windows = dict(self._last_elements(first, cols))
        k_fold = max(windows.values()) // rows
        # The operand that stays is filled from its last row to its first.
        nearest = min(self._element_from(window, k_fold * rows) for window in windows)
        return (fold * k_folds + k_fold) * lines + rows - (nearest - k_fold * rows)

    def _last_fold(self, size: int) -> tuple[int, int]:
        """The last fold of so many windows in which one lies on the ifmap, and its first window."""
        rows = self.down.positions - (self.down.last == 0)
        window = (rows - 1) * self.along.positions + self.along.positions - (self.along.last == 0) - 1
        return window // size, window // size * size

    def _last_elements(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Of each kind of window among `count` from `first` on the last one, and its last element on the ifmap."""
        end, width = min(first + count, self.m) - 1, self.along.positions
        # The last of all, of the rows before its own and of the rows that do not hang, and the one before each.
        ends = (end, end // width * width - 1, (self.down.positions - 1) * width - 1)
        for window in {place - back for place in ends for back in (0, 1)}:
            if first <= window <= end:
                height, wide = self._held(window)
                if height and wide:
                    yield window, ((height - 1) * self.along.size + wide) * self.channels - 1

    def _held(self, window: int) -> tuple[int, int]:
        """Rows and columns of a window that lie on the ifmap."""
        row, col = divmod(window, self.along.positions)
        height = self.down.last if row == self.down.positions - 1 else self.down.size
        return height, self.along.last if col == self.along.positions - 1 else self.along.size

    def _element_from(self, window: int, first: int) -> int:
        """The first element at `first` or later that lies on the ifmap; k where there is none."""
        height, width = self._held(window)
        row, rest = divmod(first, self.along.size * self.channels)
        if rest >= width * self.channels:
            row, rest = row + 1, 0
        return (row * self.along.size) * self.channels + rest if row < height else self.k
