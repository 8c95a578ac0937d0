"""A delivery's accepted rows in file order, in pieces: of a large one no more than a piece is in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import polars as pl

#: Rows of a piece that is laid aside.
PIECE_ROWS = 500_000
Load = Callable[[Sequence[str] | None], pl.DataFrame]


class Aside(Protocol):
    """Where pieces lie until they are needed again."""

    def put(self, rows: pl.DataFrame) -> Load:
        """Lay rows aside; what is returned gives them back, or some of their columns."""
        ...


@dataclass(frozen=True)
class _Piece:
    """Some consecutive rows."""

    height: int
    load: Load
    #: Which rows of what is loaded count; None: all.
    places: pl.Series | None = None

    @classmethod
    def of(cls, rows: pl.DataFrame) -> "_Piece":
        return cls(rows.height, lambda columns: rows if columns is None else rows.select(columns))

    def read(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        rows = self.load(columns)
        return rows if self.places is None else rows[self.places]

    def pick(self, places: pl.Series) -> "_Piece":
        if places.len() == self.height:
            return self
        inner = places if self.places is None else self.places.gather(places)
        return replace(self, height=places.len(), places=inner)


@dataclass(frozen=True)
class Parts:
    """Rows with the columns of `schema`; may be gone through any number of times."""

    schema: pl.Schema
    pieces: tuple[_Piece, ...]
    #: Whether no piece was laid aside.
    in_memory: bool = True

    @classmethod
    def of(cls, empty: pl.DataFrame, frames: Iterable[pl.DataFrame], aside: Aside | None = None) -> "Parts":
        """Gather frames like `empty`, each as it comes; with `aside`, memory holds but the last of them."""
        pieces: list[_Piece] = []
        waiting: list[pl.DataFrame] = []

        def lay_aside(store: Aside) -> None:
            rows = pl.concat(waiting)
            waiting.clear()
            pieces.append(_Piece(rows.height, store.put(rows)))

        for frame in frames:
            if aside is None:
                pieces.append(_Piece.of(frame))
                continue
            waiting.append(frame)
            if sum(rows.height for rows in waiting) >= PIECE_ROWS:
                lay_aside(aside)
        if aside is not None and waiting:
            lay_aside(aside)
        return cls(empty.schema, tuple(p for p in pieces if p.height), in_memory=aside is None)

    @property
    def height(self) -> int:
        """How many rows there are."""
        return sum(piece.height for piece in self.pieces)

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """The rows, piece by piece."""
        return (piece.read() for piece in self.pieces)

    def gather(self, columns: Sequence[str], make: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        """What `make` makes of some columns of each piece, together."""
        empty = make(pl.DataFrame(schema={name: self.schema[name] for name in columns}))
        return pl.concat([empty, *(make(piece.read(columns)) for piece in self.pieces)])

    def column(self, name: str) -> pl.Series:
        """One column of all rows."""
        return self.gather([name], lambda rows: rows)[name]

    def select(self, columns: Sequence[str]) -> "Parts":
        """The same rows with these columns alone; the others are no longer kept in memory for it."""
        schema = pl.Schema({name: self.schema[name] for name in columns})
        kept = [_Piece.of(p.read(columns)) if self.in_memory else _narrowed(p, columns) for p in self.pieces]
        return Parts(schema, tuple(kept), self.in_memory)

    def map(self, make: Callable[[pl.DataFrame], pl.DataFrame]) -> "Parts":
        """What `make` makes of each piece, when it is read; as many rows."""
        schema = make(pl.DataFrame(schema=self.schema)).schema
        return Parts(schema, tuple(_made(piece, make) for piece in self.pieces), self.in_memory)

    def filter(self, mask: pl.Series) -> "Parts":
        """The rows where `mask` (Boolean, one per row) is true."""
        return self.pick(mask.arg_true())

    def pick(self, places: pl.Series) -> "Parts":
        """The rows at some places (integers from 0, ascending)."""
        kept, start = [], 0
        for piece in self.pieces:
            within = places.filter((places >= start) & (places < start + piece.height)) - start
            if within.len():
                kept.append(piece.pick(within))
            start += piece.height
        return Parts(self.schema, tuple(kept), self.in_memory)

    def frame(self) -> pl.DataFrame:
        """All rows at once."""
        rows: pl.DataFrame = pl.concat([pl.DataFrame(schema=self.schema), *self])
        return rows


def _narrowed(piece: _Piece, columns: Sequence[str]) -> _Piece:
    load = piece.load
    return replace(piece, load=lambda some: load(columns if some is None else some))


def _made(piece: _Piece, make: Callable[[pl.DataFrame], pl.DataFrame]) -> _Piece:
    def load(columns: Sequence[str] | None) -> pl.DataFrame:
        rows = make(piece.read())
        return rows if columns is None else rows.select(columns)

    return _Piece(piece.height, load)
