"""Where the state lives that the processes of a fleet share."""
