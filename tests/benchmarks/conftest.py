"""Benchmarks are run by hand: pytest collects nothing here, not even doctests."""

collect_ignore_glob = ["*.py"]
