"""pytest's part: options, hooks, and the processes that measure."""
