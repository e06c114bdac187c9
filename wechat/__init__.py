"""The WeChat Official Account protocol: pushes in, replies out, and the platform's API.

It imports nothing of this project outside itself, no web framework and no database, and could be lifted out.
"""
