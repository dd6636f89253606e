"""`make bench-content`: content between two processes, beside http.server and Kubo."""
