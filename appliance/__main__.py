"""``python -m appliance`` is ``pd-appliance``."""

from appliance.cli import main

main()
