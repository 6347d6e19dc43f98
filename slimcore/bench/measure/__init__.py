"""What a worker process does: build a subject, generate, time it."""

VERSION = 2  # of a worker's requests and answers
