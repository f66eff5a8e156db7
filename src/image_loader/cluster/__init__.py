"""A run on the workers of a Dask scheduler: one task for each part of the hosts."""
