"""Beyond one machine, on engines that exist: `pip install recsys-helpers[scale]`.

`parts` works through folders of Parquet files with dask.distributed, `training` shares a model out
to devices and processes with `keras.distribution`, `milvus` keeps vectors in Milvus, `splitting`
splits a log with DuckDB. Nothing else in the package needs them, and each imports its engine when
it's used.
"""
