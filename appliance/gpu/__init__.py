"""What real GPUs read, by NVML.

``nvml.py`` is the only module that imports pynvml. ``library.py`` is the one place through which anything is asked, and where what is
refused becomes None; ``device.py`` is one GPU, of which ``gpm.py`` and ``fields.py`` are parts; ``watch.py`` reads in a thread of its own;
``tenants.py`` says whose a GPU is, and who else is on it.
"""
