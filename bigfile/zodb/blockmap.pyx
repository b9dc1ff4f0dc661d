"""Block number -> object, and the reverse: what pages in memory are made of, in little memory.

A block takes 8 bytes for its object, and 5 to 11 bytes in the index by object. A hole takes less
than a byte, if its neighbours are known, too. A boundary finds the blocks of changed objects, and
the blocks of a part of the block table, without a walk over all known blocks.

Organization
------------
64 neighbouring blocks are a Chunk: one bit for each that is known, one for each that is an object,
and the oids of these, packed. Chunks are in one array, ascending. The index is an open-addressing
hash table of block numbers, by the oid that the chunk has for them (Knuth, TAOCP vol. 3, 6.4,
algorithm R): it keeps no oids itself. If several blocks have the same object, which only a strange
table has, the first is in the index, and the others are in a dict.

This module knows only numbers.

Locking: the GIL. No code of others runs in here, so each method is atomic.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport UINT32_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove

cdef extern from *:
    int popcount "__builtin_popcountll" (unsigned long long) nogil
    int ctz "__builtin_ctzll" (unsigned long long) nogil

cdef enum:
    CHUNK = 64              # blocks
    STEP = 8                # oids that a chunk gets memory for at a time
    MIN_INDEX = 16          # slots

cdef struct Chunk:
    uint64_t id             # block number // CHUNK
    uint64_t known          # bit i: block id * CHUNK + i is known
    uint64_t stored         # and it is an object
    uint64_t *oids          # one for each bit of stored, in their order


cdef inline uint64_t number(bytes oid) except? 0:
    """Return an oid as a number."""
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(oid)
    cdef uint64_t n = 0
    cdef int i
    if PyBytes_GET_SIZE(oid) != 8:
        raise ValueError(f"{oid!r} is not an oid")
    for i in range(8):
        n = n << 8 | at[i]
    return n


cdef inline bytes oid_of(uint64_t n):
    cdef uint8_t[8] at
    cdef int i
    for i in range(8):
        at[i] = n >> (56 - 8 * i) & 0xFF
    return PyBytes_FromStringAndSize(<const char *>at, 8)


cdef inline int place(const Chunk *chunk, int bit) noexcept nogil:
    """Return where the oid of a block of a chunk is, or belongs."""
    return popcount(chunk.stored & ((<uint64_t>1 << bit) - 1))


cdef inline uint64_t mask_of(uint64_t id, uint64_t start, uint64_t stop) noexcept nogil:
    """Return the bits of a chunk that are blocks in [start, stop); it has some."""
    cdef uint64_t mask = ~<uint64_t>0
    if start > id * CHUNK:
        mask &= mask << (start - id * CHUNK)
    if stop < (id + 1) * CHUNK:
        mask &= (<uint64_t>1 << (stop - id * CHUNK)) - 1
    return mask


cdef class BlockMap:
    """Block number -> oid, or None for a hole.

    Attributes
    ----------
    visits : int
        Number of chunks and blocks that were visited, to find changes.
    """

    cdef Chunk *chunks
    cdef size_t n_chunks, most_chunks
    cdef size_t n_known
    cdef uint32_t *index        # block + 1; 0: free
    cdef uint64_t *wide         # the same, instead of index, once a block does not fit into it
    cdef size_t n_index, most_index
    cdef dict more              # oid -> set of blocks that are the same object as one in the index
    cdef readonly size_t visits

    def __cinit__(self):
        self.more = {}

    def __dealloc__(self):
        self.free_all()

    cdef void free_all(self) noexcept:
        cdef size_t i
        for i in range(self.n_chunks):
            free(self.chunks[i].oids)
        free(self.chunks)
        free(self.index)
        free(self.wide)
        self.chunks = NULL
        self.index = NULL
        self.wide = NULL
        self.n_chunks = self.most_chunks = self.n_known = self.n_index = self.most_index = 0

    # ---- chunks ----

    cdef size_t find(self, uint64_t id) noexcept:
        """Return the index of the first chunk that is `id` or after it."""
        cdef size_t lo = 0, hi = self.n_chunks, mid
        while lo < hi:
            mid = (lo + hi) // 2
            if self.chunks[mid].id < id:
                lo = mid + 1
            else:
                hi = mid
        return lo

    cdef Chunk *chunk_of(self, uint64_t blk) noexcept:
        cdef size_t i = self.find(blk // CHUNK)
        if i < self.n_chunks and self.chunks[i].id == blk // CHUNK:
            return &self.chunks[i]
        return NULL

    cdef Chunk *make_chunk(self, uint64_t id) except NULL:
        cdef size_t i = self.find(id), most
        cdef Chunk *chunks
        if i < self.n_chunks and self.chunks[i].id == id:
            return &self.chunks[i]
        if self.n_chunks == self.most_chunks:
            most = self.most_chunks + self.most_chunks // 2 + 1
            chunks = <Chunk *>realloc(self.chunks, most * sizeof(Chunk))
            if chunks == NULL:
                raise MemoryError
            self.chunks = chunks
            self.most_chunks = most
        memmove(self.chunks + i + 1, self.chunks + i, (self.n_chunks - i) * sizeof(Chunk))
        self.n_chunks += 1
        self.chunks[i].id = id
        self.chunks[i].known = self.chunks[i].stored = 0
        self.chunks[i].oids = NULL
        return &self.chunks[i]

    cdef bint get_stored(self, uint64_t blk, uint64_t *oid) noexcept:
        """Get the object of a block; False: it is a hole, or not known."""
        cdef Chunk *chunk = self.chunk_of(blk)
        cdef int bit = blk % CHUNK
        if chunk == NULL or not chunk.stored >> bit & 1:
            return False
        oid[0] = chunk.oids[place(chunk, bit)]
        return True

    cdef int put_stored(self, uint64_t blk, uint64_t oid) except -1:
        """Turn a known hole into an object."""
        cdef Chunk *chunk = self.chunk_of(blk)
        cdef int bit = blk % CHUNK, at = place(chunk, bit), n = popcount(chunk.stored)
        cdef uint64_t *oids
        if n % STEP == 0:
            oids = <uint64_t *>realloc(chunk.oids, (n + STEP) * sizeof(uint64_t))
            if oids == NULL:
                raise MemoryError
            chunk.oids = oids
        memmove(chunk.oids + at + 1, chunk.oids + at, (n - at) * sizeof(uint64_t))
        chunk.oids[at] = oid
        chunk.stored |= <uint64_t>1 << bit
        try:
            self.index_add(oid, blk)
        except BaseException:
            self.take_stored(chunk, bit)
            raise
        return 0

    cdef void take_stored(self, Chunk *chunk, int bit) noexcept:
        """Turn an object, which is not in the index any more, into a known hole."""
        cdef int at = place(chunk, bit), n = popcount(chunk.stored)
        memmove(chunk.oids + at, chunk.oids + at + 1, (n - at - 1) * sizeof(uint64_t))
        chunk.stored &= ~(<uint64_t>1 << bit)
        if n == 1:
            free(chunk.oids)
            chunk.oids = NULL

    # ---- the index ----

    cdef inline uint64_t slot(self, size_t i) noexcept:
        return self.index[i] if self.wide == NULL else self.wide[i]

    cdef inline void set_slot(self, size_t i, uint64_t value) noexcept:
        if self.wide == NULL:
            self.index[i] = <uint32_t>value
        else:
            self.wide[i] = value

    cdef inline size_t home(self, uint64_t oid) noexcept:
        # Fibonacci hashing: oids are given out one after another
        return <size_t>((oid * <uint64_t>0x9E3779B97F4A7C15) >> 20) & (self.most_index - 1)

    cdef size_t index_find(self, uint64_t oid) noexcept:
        """Return the slot of an object, or the free one where it belongs."""
        cdef size_t i = self.home(oid)
        cdef uint64_t value, other = 0
        while True:
            value = self.slot(i)
            if value == 0 or (self.get_stored(value - 1, &other) and other == oid):
                return i
            i = (i + 1) & (self.most_index - 1)

    cdef int index_resize(self, size_t size, bint wide) except -1:
        cdef size_t i, old_size = self.most_index
        cdef uint32_t *old = self.index
        cdef uint64_t *old_wide = self.wide
        cdef uint64_t value, oid = 0
        cdef void *new = calloc(size, sizeof(uint64_t) if wide else sizeof(uint32_t))
        if new == NULL:
            raise MemoryError
        self.index = NULL if wide else <uint32_t *>new
        self.wide = <uint64_t *>new if wide else NULL
        self.most_index = size
        for i in range(old_size):
            value = old_wide[i] if old_wide != NULL else old[i]
            if value != 0:
                self.get_stored(value - 1, &oid)
                self.set_slot(self.index_find(oid), value)
        free(old)
        free(old_wide)
        return 0

    cdef int index_add(self, uint64_t oid, uint64_t blk) except -1:
        cdef bint wide = self.wide != NULL or blk >= UINT32_MAX
        cdef size_t i
        if 4 * (self.n_index + 1) > 3 * self.most_index:
            self.index_resize(max(2 * self.most_index, <size_t>MIN_INDEX), wide)
        elif wide and self.wide == NULL:
            self.index_resize(self.most_index, wide)
        i = self.index_find(oid)
        if self.slot(i) == 0:
            self.set_slot(i, blk + 1)
            self.n_index += 1
        else:
            self.more.setdefault(oid, set()).add(blk)
        return 0

    cdef int index_del(self, uint64_t oid, uint64_t blk) except -1:
        """Take a block out, which its chunk still has."""
        cdef size_t hole, i, home, mask = self.most_index - 1
        cdef uint64_t value, other = 0
        others = self.more.get(oid)
        hole = self.index_find(oid)
        if others is not None:
            if self.slot(hole) == blk + 1:
                self.set_slot(hole, <uint64_t>others.pop() + 1)
            else:
                others.discard(blk)
            if not others:
                del self.more[oid]
            return 0
        self.n_index -= 1
        i = hole
        while True:
            i = (i + 1) & mask
            value = self.slot(i)
            if value == 0:
                break
            self.get_stored(value - 1, &other)
            # an entry may move into the hole if the hole lies between its home and itself
            home = self.home(other)
            if ((i - home) & mask) >= ((i - hole) & mask):
                self.set_slot(hole, value)
                hole = i
        self.set_slot(hole, 0)
        return 0

    # ---- as a dict ----

    def __len__(self):
        return self.n_known

    def __contains__(self, uint64_t blk):
        cdef Chunk *chunk = self.chunk_of(blk)
        return chunk != NULL and chunk.known >> (blk % CHUNK) & 1 != 0

    def get(self, uint64_t blk, default=None):
        """Return the oid of a block; None: it is a hole; default: it is not known."""
        cdef uint64_t oid = 0
        if self.get_stored(blk, &oid):
            return oid_of(oid)
        return None if blk in self else default

    def __setitem__(self, uint64_t blk, oid):
        cdef Chunk *chunk
        cdef int bit = blk % CHUNK
        cdef uint64_t before = 0, after = 0 if oid is None else number(oid)
        if self.get_stored(blk, &before):
            if oid is not None and before == after:
                return
            self.index_del(before, blk)
            self.take_stored(self.chunk_of(blk), bit)
        else:
            chunk = self.make_chunk(blk // CHUNK)
            self.n_known += not chunk.known >> bit & 1
            chunk.known |= <uint64_t>1 << bit
        if oid is not None:
            self.put_stored(blk, after)

    def setdefault(self, uint64_t blk, oid):
        """Return the oid of a block, or None, which is now `oid` if it was not known."""
        if blk not in self:
            self[blk] = oid
        return self.get(blk)

    def discard(self, uint64_t blk):
        """Forget a block."""
        cdef Chunk *chunk
        cdef size_t i
        cdef uint64_t oid = 0
        cdef int bit = blk % CHUNK
        if self.get_stored(blk, &oid):
            self.index_del(oid, blk)
            self.take_stored(self.chunk_of(blk), bit)
        chunk = self.chunk_of(blk)
        if chunk == NULL or not chunk.known >> bit & 1:
            return
        chunk.known &= ~(<uint64_t>1 << bit)
        self.n_known -= 1
        if chunk.known == 0:
            i = chunk - self.chunks
            self.n_chunks -= 1
            memmove(self.chunks + i, self.chunks + i + 1, (self.n_chunks - i) * sizeof(Chunk))

    def clear(self):
        """Forget all blocks."""
        self.more.clear()
        self.free_all()

    def blocks(self, uint64_t start=0, uint64_t stop=0xFFFFFFFFFFFFFFFF):
        """Return the known blocks in [start, stop), ascending."""
        cdef size_t i = self.find(start // CHUNK)
        cdef uint64_t bits
        result = []
        while i < self.n_chunks and self.chunks[i].id * CHUNK < stop:
            bits = self.chunks[i].known & mask_of(self.chunks[i].id, start, stop)
            while bits != 0:
                result.append(self.chunks[i].id * CHUNK + <uint64_t>ctz(bits))
                bits &= bits - 1
            i += 1
        return result

    def oids(self):
        """Return the oids of all known blocks."""
        cdef size_t i
        cdef int k
        result = set()
        for i in range(self.n_chunks):
            for k in range(popcount(self.chunks[i].stored)):
                result.add(oid_of(self.chunks[i].oids[k]))
        return result

    # ---- what changed ----

    def blocks_of(self, oids):
        """Return the set of blocks that are one of these objects."""
        cdef uint64_t oid, value
        result = set()
        if self.n_index == 0:
            return result
        for each in oids:
            oid = number(each)
            self.visits += 1
            value = self.slot(self.index_find(oid))
            if value != 0:
                result.add(value - 1)
                result.update(self.more.get(oid, ()))
        return result

    def knows(self, uint64_t start, uint64_t stop):
        """Say whether any block in [start, stop) is known."""
        cdef size_t i = self.find(start // CHUNK)
        while i < self.n_chunks and self.chunks[i].id * CHUNK < stop:
            if self.chunks[i].known & mask_of(self.chunks[i].id, start, stop):
                return True
            i += 1                  # twice at most: a chunk knows some block
        return False

    def differing(self, uint64_t start, uint64_t stop, dict now):
        """Return the known blocks in [start, stop) that have changed.

        Parameters
        ----------
        start, stop : int
        now : dict
            Block -> oid, of blocks in [start, stop); those that are not in it are holes.
        """
        cdef size_t i = self.find(start // CHUNK)
        cdef uint64_t bits, blk, oid = 0
        result = []
        for blk, of in now.items():
            self.visits += 1
            if not (self.get_stored(blk, &oid) and oid == number(of)) and blk in self:
                result.append(blk)
        while i < self.n_chunks and self.chunks[i].id * CHUNK < stop:
            self.visits += 1
            bits = self.chunks[i].stored & mask_of(self.chunks[i].id, start, stop)
            while bits != 0:
                blk = self.chunks[i].id * CHUNK + <uint64_t>ctz(bits)
                bits &= bits - 1
                if blk not in now:
                    result.append(blk)
            i += 1
        return result

    def spans(self, uint64_t start, uint64_t stop):
        """Return ranges (start, stop) in [start, stop), at most 4096 long, of all known blocks."""
        cdef size_t i = self.find(start // CHUNK)
        cdef uint64_t lo, hi, to = 0
        result = []
        while i < self.n_chunks and self.chunks[i].id * CHUNK < stop:
            self.visits += 1
            lo = max(self.chunks[i].id * CHUNK, start)
            hi = min((self.chunks[i].id + 1) * CHUNK, stop)
            if lo >= hi:
                break
            if result and to == lo and hi - <uint64_t>result[-1][0] <= 4096:
                result[-1] = (result[-1][0], hi)
            else:
                result.append((lo, hi))
            to = hi
            i += 1
        return result


cdef struct Part:
    uint64_t oid
    uint64_t blk                # + 1; 0: the slot is free


cdef class PartMap:
    """Block number -> oids of what it is made of, besides its object; and the way back.

    A part takes 8 bytes, and 21 to 43 in the index: a hash table as that of BlockMap.
    """

    cdef dict packed            # block -> oids, one after another
    cdef Part *index
    cdef size_t n_index, most_index

    def __cinit__(self):
        self.packed = {}

    def __dealloc__(self):
        free(self.index)

    cdef inline size_t home(self, uint64_t oid) noexcept:
        return <size_t>((oid * <uint64_t>0x9E3779B97F4A7C15) >> 20) & (self.most_index - 1)

    cdef int add(self, uint64_t oid, uint64_t blk) except -1:
        cdef size_t i, old_size = self.most_index
        cdef Part *old = self.index
        cdef Part *new
        if 4 * (self.n_index + 1) > 3 * self.most_index:
            self.most_index = max(2 * old_size, <size_t>MIN_INDEX)
            new = <Part *>calloc(self.most_index, sizeof(Part))
            if new == NULL:
                self.most_index = old_size
                raise MemoryError
            self.index = new
            for i in range(old_size):
                if old[i].blk != 0:
                    self.put_part(old[i])
            free(old)
        self.put_part(Part(oid, blk + 1))
        self.n_index += 1
        return 0

    cdef void put_part(self, Part part) noexcept:
        cdef size_t i = self.home(part.oid)
        while self.index[i].blk != 0:
            i = (i + 1) & (self.most_index - 1)
        self.index[i] = part

    cdef void take(self, uint64_t oid, uint64_t blk) noexcept:
        cdef size_t mask = self.most_index - 1, i = self.home(oid), hole, home
        if self.n_index == 0:
            return                  # there was no memory to add it
        while self.index[i].blk != blk + 1 or self.index[i].oid != oid:
            if self.index[i].blk == 0:
                return
            i = (i + 1) & mask
        self.n_index -= 1
        hole = i
        while True:
            i = (i + 1) & mask
            if self.index[i].blk == 0:
                break
            home = self.home(self.index[i].oid)
            if ((i - home) & mask) >= ((i - hole) & mask):
                self.index[hole] = self.index[i]
                hole = i
        self.index[hole].blk = 0

    def __len__(self):
        return len(self.packed)

    def of(self, uint64_t blk):
        """Return the oids of the parts of a block."""
        cdef bytes packed = self.packed.get(blk, b"")
        cdef const char *at = PyBytes_AS_STRING(packed)
        cdef Py_ssize_t i
        oids = []
        for i in range(0, PyBytes_GET_SIZE(packed), 8):
            oids.append(PyBytes_FromStringAndSize(at + i, 8))
        return frozenset(oids)

    def put(self, uint64_t blk, oids):
        """Set the parts of a block."""
        self.discard(blk)
        if not oids:
            return
        packed = b"".join(oids)
        self.packed[blk] = packed
        for oid in oids:
            self.add(number(oid), blk)

    def discard(self, uint64_t blk):
        """Remove the parts of a block."""
        for oid in self.of(blk):
            self.take(number(oid), blk)
        self.packed.pop(blk, None)

    def oids(self):
        """Return the oids of all parts."""
        return {oid for blk in list(self.packed.copy()) for oid in self.of(blk)}

    def blocks_of(self, oids):
        """Return the set of blocks that any of these is a part of."""
        cdef uint64_t oid
        cdef size_t i
        result = set()
        if self.n_index == 0:
            return result
        for each in oids:
            oid = number(each)
            i = self.home(oid)
            while self.index[i].blk != 0:
                if self.index[i].oid == oid:
                    result.add(self.index[i].blk - 1)
                i = (i + 1) & (self.most_index - 1)
        return result
