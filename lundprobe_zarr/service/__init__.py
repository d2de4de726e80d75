"""The service: a read-only web server that gives datasets to those who may have them.

May import any room but the command line and the converter. Start reading at `app.py`; what every
request passes is in `gate.py`.
"""
