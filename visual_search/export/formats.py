"""How a part is written: Parquet, NumPy's arrays beside Parquet, or CSV."""

import json
from collections.abc import Callable
from typing import BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

Format = Literal["parquet", "npy", "csv"]
Writer = Callable[[pa.Table, BinaryIO], None]


def _parquet(table: pa.Table, file: BinaryIO) -> None:
    pq.write_table(table, file, compression="zstd", use_dictionary=False)


def _metadata(table: pa.Table, file: BinaryIO) -> None:
    _parquet(table.drop_columns(["embedding"]), file)


def _array(table: pa.Table, file: BinaryIO) -> None:
    """`(N, D)`, in the type that the shard has."""
    embedding = table.column("embedding").combine_chunks()
    values = embedding.flatten().to_numpy(zero_copy_only=False)
    np.save(file, values.reshape(table.num_rows, -1), allow_pickle=False)


def _csv(table: pa.Table, file: BinaryIO) -> None:
    """Lists as JSON arrays; numbers with as many digits as tell them apart."""
    dim = table.schema.field("embedding").type.list_size
    numbers = table.column("embedding").combine_chunks().flatten()
    if numbers.type == pa.float16():
        numbers = numbers.cast(pa.float32())
    digits = numbers.cast(pa.string()).to_pylist()
    columns = {
        "embedding": [
            f"[{','.join(digits[start : start + dim])}]" for start in range(0, len(digits), dim)
        ],
        "product_ids": [_json(ids) for ids in table.column("product_ids").to_pylist()],
        "attributes": [
            f"[{', '.join(objects)}]" for objects in table.column("attributes").to_pylist()
        ],
    }
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, pa.array(values, pa.string()))
    pc.write_csv(table, file)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


WRITERS: dict[Format, dict[str, Writer]] = {
    "parquet": {"{part}.parquet": _parquet},
    "csv": {"{part}.csv": _csv},
    # As embedding-reader and clip-retrieval have it. The last file makes the part whole.
    "npy": {"metadata/{part}.parquet": _metadata, "embeddings/{part}.npy": _array},
}
"""Of each format the files of a part, in the order in which they are written."""
