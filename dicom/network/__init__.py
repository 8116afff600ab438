"""The network edge: association, C-ECHO, C-FIND, C-STORE.

pynetdicom prints whole PDUs and identifiers to its loggers by default, patient names among them.
Importing this package turns that off for the process, before the first association can exist.
"""

from pynetdicom import _config

_config.LOG_HANDLER_LEVEL = "none"  # no handlers that format every message and PDU
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
