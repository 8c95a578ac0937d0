"""healthingest: member files in, one protected and fully accounted `silver` table out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


def read_silver(**asked: Any) -> "pl.LazyFrame":  # noqa: ANN401 - told by the function that it stands for
    """Current members, as far as a role may see them: `healthingest.reading.read_silver`, loaded when it is called."""
    from healthingest.reading import read_silver as read

    return read(**asked)
