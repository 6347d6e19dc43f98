"""What was measured, as typed records and as files."""
