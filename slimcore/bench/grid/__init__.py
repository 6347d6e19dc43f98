"""What is to be measured: cells, and what they are expected to take."""
