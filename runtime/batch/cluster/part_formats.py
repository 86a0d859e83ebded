"""The bytes of a part: the columns of result lines as Parquet or JSON Lines."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..output import to_line

if TYPE_CHECKING:
    import pyarrow as pa

PartFormat = Literal["parquet", "jsonl"]


def to_bytes(columns: Mapping[str, Sequence[Any]], form: PartFormat) -> bytes:
    """Return a whole file that holds these columns, which have one length."""
    return _parquet(columns) if form == "parquet" else _json_lines(columns)


def _json_lines(columns: Mapping[str, Sequence[Any]]) -> bytes:
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return b"".join(to_line(row, "jsonl") for row in rows)


def _parquet(columns: Mapping[str, Sequence[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns), schema=_schema()), sink)
    return sink.getvalue()


def _schema() -> pa.Schema:
    import pyarrow as pa

    candidate = pa.struct([("label", pa.string()), ("index", pa.int64()), ("score", pa.float64())])
    return pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("index", pa.int64()),
            ("score", pa.float64()),
            ("top", pa.list_(candidate)),
            ("error", pa.string()),
        ]
    )
