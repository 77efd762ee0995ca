"""The sides that are compared, one file each."""
