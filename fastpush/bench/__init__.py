"""`fastpush bench`: a load tester for push servers. cli/bench.py is its only caller.

Data flows one way: options -> plan -> processes (each one epoll loop: publishers, receivers)
-> results -> table, JSON, page, assertions.
"""
