"""The server: ClickHouse's HTTP protocol, a REST API, and the page for browsers, over one open database."""
