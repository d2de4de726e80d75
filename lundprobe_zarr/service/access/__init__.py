"""Who may have what: callers and grants, tokens, sign-in, sessions, limits, the audit log.

Imports `service.http` and rooms below the service.
Start reading at callers.py, then entrance.py.
"""
