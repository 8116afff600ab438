"""The operator page: server-rendered, works offline, shows no identifier of a patient.

It runs in the service process, beside the listener, and reads the ledger. What it changes, it
changes through the functions that `flairnode jobs` uses, and every change is in the audit trail.
"""
