"""Files, URLs, ports, safe parsing and HTML."""
