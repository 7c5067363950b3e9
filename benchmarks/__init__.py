"""What a token costs, ours and others': `python -m benchmarks`. See docs/performance.md."""
