package vsock

import "sync"

// chunkSize is the unit in which a connection's buffer takes memory, in bytes.
const chunkSize = 16 << 10

// maxChunks hold the largest window, wherever in a chunk it begins.
const maxChunks = MaxWindow/chunkSize + 1

type chunk [chunkSize]byte

// chunkPool keeps chunks that no connection needs at the moment.
type chunkPool struct{ p sync.Pool }

func (p *chunkPool) get() *chunk {
	if c, ok := p.p.Get().(*chunk); ok {
		return c
	}
	return new(chunk)
}

func (p *chunkPool) put(c *chunk) { p.p.Put(c) }

// buffer is a queue of bytes, in chunks that it takes when it grows and gives
// back when it shrinks: an empty one has none. It holds at most MaxWindow bytes,
// which its user sees to.
type buffer struct {
	chunks [maxChunks]*chunk // a ring
	first  int               // the chunk with the first byte
	off    int               // of that byte in it
	n      int               // bytes
}

// append copies the bytes of vec from byte skip on to the end.
func (b *buffer) append(pool *chunkPool, vec [][]byte, skip int) {
	for _, v := range vec {
		if skip >= len(v) {
			skip -= len(v)
			continue
		}
		v = v[skip:]
		skip = 0
		for len(v) > 0 {
			at := b.off + b.n
			slot := &b.chunks[(b.first+at/chunkSize)%maxChunks]
			if *slot == nil {
				*slot = pool.get()
			}
			k := copy((*slot)[at%chunkSize:], v)
			b.n += k
			v = v[k:]
		}
	}
}

// vec appends the bytes, in their order, to dst, in as many pieces as it has
// room for.
func (b *buffer) vec(dst [][]byte) [][]byte {
	at, left := b.off, b.n
	for i := b.first; left > 0 && len(dst) < cap(dst); i = (i + 1) % maxChunks {
		k := min(left, chunkSize-at)
		dst = append(dst, b.chunks[i][at:at+k])
		left -= k
		at = 0
	}
	return dst
}

// read moves the first bytes to p and returns how many.
func (b *buffer) read(pool *chunkPool, p []byte) int {
	total := 0
	for len(p) > 0 && b.n > 0 {
		k := copy(p, b.chunks[b.first][b.off:min(chunkSize, b.off+b.n)])
		p = p[k:]
		total += k
		b.discard(pool, k)
	}
	return total
}

// discard drops the first n bytes.
func (b *buffer) discard(pool *chunkPool, n int) {
	for n > 0 {
		k := min(n, chunkSize-b.off)
		n -= k
		b.n -= k
		if b.off += k; b.off == chunkSize || b.n == 0 {
			pool.put(b.chunks[b.first])
			b.chunks[b.first] = nil
			b.first = (b.first + 1) % maxChunks
			b.off = 0
		}
	}
}
