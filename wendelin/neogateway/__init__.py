"""The gateway: a ZEO server before a NEO 1.12 cluster, for clients of Python 3.

The server runs on Python 2.7, as NEO 1.12 does: `py27/gateway.py`. Modules here install and start
it. They know processes and the environment of NEO, but not the rest of wendelin.core, for which the
gateway is an ordinary ZEO server.
"""
