"""The feature store: what a frozen image tower says of a picture is computed once and kept.

`entries` says what is kept under which name, `store` keeps it on disk (in `files`, with `locks`, within a `budget`;
`upkeep` is for who looks after it), `pictures` knows files by their content,
`transforms` says what becomes of them, `pieces` in which canonical pieces they are encoded, `source` gives a loader's
batches their features, and `feed` says which loaders of a trainer get any.
"""
