"""What a worker process does: build a subject, generate, time it."""
