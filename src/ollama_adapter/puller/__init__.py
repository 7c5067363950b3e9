"""Fetches models from a registry, with consent, in a jail of its own (docs/security.md).

The work is done by `puller.pull`. Importing this package loads none of it: the process that speaks with a
registry (`fetching`) is started by its path, and knows the standard library only.
"""
