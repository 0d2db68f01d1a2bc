"""Serve a Hub for a person to try push and pull by hand: ``make hub PORT=8000 ROOT=DIR``."""

import sys
import time

from hub_server import HubServer

port, root = int(sys.argv[1]), sys.argv[2]
hub = HubServer(root, port)
print(f"A Hub with the accounts alice and bob, kept in {root}. Ctrl-C ends it. Paste into another shell:\n")
print(f"export HF_ENDPOINT={hub.url} HF_TOKEN=hf_writer HF_HUB_DISABLE_XET=1 HF_HOME={root}/client", flush=True)
try:
    while True:
        time.sleep(3600)
except KeyboardInterrupt:
    print()
