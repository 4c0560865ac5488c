"""pd-appliance: prefill and decode on separate engines of one node, and the bottleneck named."""

__version__ = "0.1.0"
