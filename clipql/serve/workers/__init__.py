"""A server of many processes: one writes, the others answer what reads; see `supervisor.py`."""
