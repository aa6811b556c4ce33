"""Channels as clients and back-ends see them: who may what, the client protocol's sessions, the server API.

    namespaces.py   which settings a channel has, and who may subscribe and publish
    session.py      the client protocol of one connection: a table of states and transitions, without I/O
    service.py      publish, history, presence: what every way in does in one way
    endpoint.py     performs what sessions ask for
    api.py          the methods of the server API

What these need of a worker is handed in.
"""
