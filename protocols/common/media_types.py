"""The names of media types that Claude accepts, for the names that clients use."""

PDF, PLAIN = "application/pdf", "text/plain"
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
# Names that were never registered, or are of old browsers and of Citrix. Vendors such as OpenAI accept them.
ALIASES = {
    **dict.fromkeys(
        ("image/jpg", "image/jpe", "image/jfif", "image/pjpeg", "image/pjpg", "image/x-jpeg", "image/x-jpg"),
        "image/jpeg",
    ),
    "image/x-citrix-jpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-citrix-png": "image/png",
    "image/x-gif": "image/gif",
    "image/x-citrix-gif": "image/gif",
    "image/x-webp": "image/webp",
    **dict.fromkeys(("application/x-pdf", "application/acrobat", "text/pdf", "text/x-pdf"), PDF),
}


def accepted_type(media_type: str) -> str:
    """Returns a media type without parameters, in lower case, by its usual name."""
    plain = media_type.partition(";")[0].strip().lower()
    return ALIASES.get(plain, plain)
