"""The exceptions that decoding untrusted bytes can raise.

ValueError covers msgspec.DecodeError (syntax and types), UnicodeError (invalid UTF-8) and binascii.Error (invalid
base64). RecursionError is raised for JSON that is nested too deeply.
"""

DECODE_ERRORS = (ValueError, RecursionError)
