"""TCP connections that outlive their server: ST-TCP in user space on netfilter queues."""

__version__ = "0.1.0"
