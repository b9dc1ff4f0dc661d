"""Blocks in a database: their formats and their table, and what is between a transaction and pages.

From the ground up: interfaces and records; btree, blocktable and formats, which read records;
prefetch and savepoint; blockfile (ZFile), the BigFile over them; handle (ZBigFileH) and file
(ZBigFile); inspect and verify, which say what a database has of a file. To databases, the
persistent classes are in wendelin.bigfile.file_zodb.
"""
