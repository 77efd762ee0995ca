"""The pure-Python reference: what fanwire stands in for, on redis-py with hiredis."""
