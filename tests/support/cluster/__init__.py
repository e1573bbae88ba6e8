"""A lab whose hosts are nodes of a real cluster: Corosync, Pacemaker and its agent start and promote the daemons."""
