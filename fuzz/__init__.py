"""Fuzzing: random input for every route and parser that strangers can reach.

Run it with `make fuzz` or `python -m fuzz`. It calls nothing outside of this machine.
"""
