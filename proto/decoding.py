"""What decoding raises at bytes that are not the JSON that was expected. It decodes nothing.

A ValueError is what msgspec says of syntax and shape (DecodeError), Python of text that is no UTF-8 (UnicodeError) and
base64 of letters that it does not have. What nests too deep is none. Anybody can send any of them.
"""

DECODE_ERRORS = (ValueError, RecursionError)
