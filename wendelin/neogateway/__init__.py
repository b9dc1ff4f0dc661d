"""The gateway: a ZEO server before a NEO 1.12 cluster, for clients of Python 3.

The server runs on Python 2.7, as NEO 1.12 does: `py27/gateway.py`. Modules here install and start
it. They know processes and the environment of NEO, and nothing of the rest of wendelin.core, which
meets the gateway as the ZEO server that it is.
"""
