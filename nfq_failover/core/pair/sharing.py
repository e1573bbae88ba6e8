"""Which ports both hosts serve, while a running daemon has been given more of them and the other has not yet.

A port that is *fresh* was added to a running daemon, and the other host is not known to have it, too. Its connections
are nobody's business yet: a host that serves leaves them to its kernel, as before. If it protected them, the tap would
bring them to a replica that nothing keeps silent. So a host that follows diverts its fresh ports at once, tells the
other when its rules are in force, and the one that serves begins to divert, to clone and to protect them then.

All of this is of the ports in force: those of the rules that were installed last (`installed`).
"""

from __future__ import annotations

from nfq_failover.core import ports
from nfq_failover.core.ports import Ports
from nfq_failover.core.settings import Settings


class Sharing:
    """`settings` are this host's, with all of its ports."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._grown = False
        self.fresh: Ports = ()
        self.installed: Ports = ports.union(settings.ports)

    @property
    def served(self) -> Ports:
        """The ports that a host diverts that serves: all but the fresh ones."""
        return ports.minus(self._settings.ports, self.fresh)

    def for_rules(self, follows: bool) -> Ports | None:
        """The ports that rules are to divert; None: those that the daemon was started with, and so it has stayed.
        `follows`: on a host that does not serve."""
        if not self._grown:
            return None
        return ports.union(self._settings.ports) if follows else self.served

    def added(self, more: Ports) -> None:
        """The daemon was given more ports; the settings have them already."""
        self._grown = True
        self.fresh = ports.union(self.fresh, more)

    def applied(self, installed: Ports | None) -> bool:
        """Rules are in force, with these ports. Returns whether there is something new to tell."""
        if installed is None or installed == self.installed:
            return False  # None: asked for before there were more
        self.installed = installed
        return True

    def told(self, theirs: Ports | None) -> Ports:
        """The other host's rules divert these ports, or it diverts them as soon as it follows. Returns those that were
        fresh until now."""
        shared = ports.both(self.fresh, theirs or ())
        self.fresh = ports.minus(self.fresh, shared)
        return shared

    def facts(self) -> tuple[tuple[str, str], ...]:
        """What the other host is told: the ports in force, those that are so because this host follows, and all that
        this host is to serve. Long lists are cut short, so there are digests besides."""
        everything = ports.union(self._settings.ports)
        in_force = ports.both(self.installed, self.served)
        added = ports.both(self.installed, self.fresh)
        return (
            ("ports", ports.text(in_force)),
            ("ports-added", ports.text(added)),
            ("ports-wanted", ports.text(everything)),
            ("ports-all", ports.digest(everything)),
            ("ports-diverted", ports.digest(ports.union(in_force, added))),
        )
