"""clipql side by side with its peers: `python -m bench.run` measures, and writes docs/benchmarks.md.

Every peer runs in a process of its own, and what is compared is run in turns, so that a slow minute of the machine is
shared. No figure is typed by hand.
"""
