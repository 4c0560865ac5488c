"""What ``pd-appliance top`` shows. All of it is pure but ``terminal``: a ``View`` and a size make lines of text."""
