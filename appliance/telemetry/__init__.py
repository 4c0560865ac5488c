"""What is known of the node: leases, timelines, rates, and the snapshots that every surface reads."""
