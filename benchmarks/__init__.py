"""Speed and memory against a peer or a ceiling; `python -m benchmarks --help`."""
