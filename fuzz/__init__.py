"""Fuzzing: strange bytes for every door that strangers can knock at. Run it with `make fuzz` or `python -m fuzz`."""
