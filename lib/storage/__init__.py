"""Storages of ZODB, and their records: read and written without a Connection.

record, inert, inertdtype     records and pickles, read as data
filestorage, fs…              a local file: aligned blocks, commits, packs, index, lock, recovery
zeoclient, zeoreceive, zeotls, zeokind a ZEO server
relational, copyrows          RelStorage, and PostgreSQL under it
storthreads, storlimits       which storages several threads may ask; how long they may take
dburl, storurl, zconfig       storages by URL and by configuration
shared, forked, snapshot, readonly
                              a database that a process opens once; after a fork; without objects
"""
