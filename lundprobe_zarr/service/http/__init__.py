"""HTTP as any service has it: answers, bodies, query strings, operations, the protocol's bounds.

Imports rooms below the service.
Start reading at answers.py.
"""
