"""Backstay beside its peers: the parts of bench/compare."""
