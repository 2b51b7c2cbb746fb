"""A shop that depends on other people's APIs: what this package does, one route for each thing.

`app` is the shop, the code to read first. `warehouse` is a second service of our own, `upstream` stands for the world
outside, `tracing` collects spans, and `python -m example_app` runs them all.
"""
