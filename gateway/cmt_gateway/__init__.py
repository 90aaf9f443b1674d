"""The front door for applications: media over plain HTTP in, one flat answer out; Triton stays on loopback behind it.

`app` makes the ASGI application, `serving` runs it. A request meets, in this order: the door (who is it, how often, how
many at once, how much), the rule of the deployment's context, Triton. Nothing that a person sends is kept or logged,
and no state outlives a request, so that any replica serves anybody.
"""
