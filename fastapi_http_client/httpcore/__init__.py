"""What the engine does not speak, over httpcore2: HTTP/2, proxies, upgrades.

`transport` is httpx's transport class over httpcore2's pool. Under the pool are `network` and, imported only for those
who ask for it, `http2`.
"""
