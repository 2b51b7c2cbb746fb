"""An app's side of the package: all that knows of FastAPI or Starlette, and the registry that lives with an app.

    dependency   `http_client("github")`: what a route asks for
    registry     `HTTPClients`: the named clients, built when the app starts and closed when it stops
    install      puts the inbound side into an app: the two below
    asgi         around each request: its id, its deadline, and the end of it when the caller has gone
    problems     what the caller is told when an upstream fails
    routes       which clients the routes of an app ask for

Nothing below imports from here: a client works without any app.
"""
