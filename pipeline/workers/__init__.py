"""Machines that a Dask scheduler knows: who is there, what is sent through a depot, what comes back; no plan."""
