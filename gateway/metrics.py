"""What a gateway counts. Labels come from fixed sets: never a tenant, a turn, a path or a model that a client named."""

from prometheus_client import Counter, Gauge

ACCEPTED = Counter("tailrace_gateway_turns_accepted_total", "Turns whose request is in the log")
REPEATED = Counter("tailrace_gateway_turns_repeated_total", "POSTs answered with the turn of their Idempotency-Key")
CANCELLED = Counter("tailrace_gateway_turns_cancelled_total", "Turns that this gateway ended as cancelled")
REFUSED = Counter("tailrace_gateway_refused_total", "Requests answered with an error, by code", ["code"])
STREAMS = Gauge("tailrace_gateway_streams_open", "Streams that are being read now")
RESUMED = Counter("tailrace_gateway_streams_resumed_total", "Streams that began after a cursor")
HELD = Gauge("tailrace_gateway_streams_held", "Readers that came back, and are held until the log answers")
BROKEN_OFF = Counter("tailrace_gateway_streams_broken_off_total", "Streams closed before their turn's end, by us")
AGED = Counter("tailrace_gateway_streams_aged_total", "Streams closed for their age, whose readers come back")
UNREAD = Counter("tailrace_gateway_connections_unread_total", "Connections closed because their clients did not read")
ENTRIES = Counter("tailrace_gateway_entries_total", "Entries taken from the log, once for each turn that is read")
WRITABLE = Gauge("tailrace_gateway_log_writable", "1 while the log takes entries, 0 once it has not for some seconds")
SENT_BYTES = Counter("tailrace_gateway_sent_bytes_total", "Bytes of frames written to streams")
FULLNESS = Gauge("tailrace_gateway_log_fullness_ratio", "Share of the stream's byte limit that is used")
