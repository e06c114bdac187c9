"""What is run by hand around a release: the parts of `make try-deploy`, as `python -m scripts.try_deploy`.

Knows the project from outside: its documents, commands and containers. The server imports nothing of it.
"""
