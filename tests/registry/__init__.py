"""A registry of our own on 127.0.0.1, which speaks Ollama's registry protocol and has faults on order.

`server.pem` is its key and certificate, `authority.pem` who signed it, `stranger.pem` somebody who did not;
they are for these tests and for nothing else.
"""
