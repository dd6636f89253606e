"""The HTTP API on loopback, pages for a browser, and the gateway for content."""
