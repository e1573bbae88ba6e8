"""What a takeover would need of this host, looked at again and again while nothing has happened.

Each subject is a check of its own (`checks.Check`), which knows neither the daemon nor the node.
"""
