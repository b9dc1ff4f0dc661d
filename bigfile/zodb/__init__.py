"""Blocks in a database: their formats and their table; transactions of changed pages.

From the ground up: interfaces and records; btree, blocktable and formats, which read records;
prefetch and savepoint; blockfile (ZFile), the BigFile over them; handle (ZBigFileH) and file
(ZBigFile); inspect and verify, which look at the blocks of a file. Databases have the persistent
classes by the name wendelin.bigfile.file_zodb.
"""
