"""The parts of `scripts/benchmark.py`: jobs, the programs that measure one system each, and what is made of them."""
