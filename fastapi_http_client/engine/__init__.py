"""The engine: an HTTP/1.1 transport for httpx on asyncio protocols and llhttp.

Read it from the top: `transport` (httpx's requests and responses) uses `request` and `response` (what goes out, what is
handed back), `pool` (which connection, and when) with `connect`, and `connection` (the socket and the exchange on it)
with `parser`. `sockets` opens sockets and `errors` says what an error tells; both also serve `httpcore/`.
"""
