"""Blocks in a database: their formats and their table, and what is between a transaction and pages.

btree, blocktable and formats read records, without a Connection; blockfile (ZFile) is
the BigFile over them, with prefetch and savepoint; inspect and verify say what a database has of a
file. The persistent classes are in wendelin.bigfile.file_zodb, the name that pickles have.
"""
