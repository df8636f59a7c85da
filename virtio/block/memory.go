package block

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	chunkSize    = 64 << 10
	memoryShards = 64
)

// Memory is an image in RAM, sparse by pieces of 64 KiB: one that was never
// written takes none. It is on no storage at all, so that Flush has nothing to
// do. All methods may be called from any goroutine.
type Memory struct {
	size  atomic.Int64
	limit int64
	used  atomic.Int64

	shards [memoryShards]memoryShard

	growMu sync.Mutex
	next   int64 // what Refresh makes the size
}

// memoryShard has the chunks whose index is the same modulo memoryShards.
type memoryShard struct {
	sync.RWMutex
	chunks map[int64]*[chunkSize]byte
}

// NewMemory returns an image of size zero bytes. What is not a whole number of
// sectors is cut off.
func NewMemory(size int64) *Memory {
	m := &Memory{}
	m.next = max(size, 0) / SectorSize * SectorSize
	m.size.Store(m.next)
	for i := range m.shards {
		m.shards[i].chunks = map[int64]*[chunkSize]byte{}
	}
	return m
}

// SetLimit bounds the memory that data takes, in bytes: a write beyond it
// fails with ENOSPC. 0 is no bound. It is to be called before the image is
// used.
func (m *Memory) SetLimit(bytes int64) { m.limit = max(bytes, 0) }

// Used is the memory that data takes now, in bytes.
func (m *Memory) Used() int64 { return m.used.Load() }

// Size implements [Image].
func (m *Memory) Size() int64 { return m.size.Load() }

// Resize is what a host does to a file: the size changes at the next Refresh.
// A smaller image loses its end then.
func (m *Memory) Resize(size int64) {
	m.growMu.Lock()
	m.next = max(size, 0) / SectorSize * SectorSize
	m.growMu.Unlock()
}

// Refresh implements [Refresher].
func (m *Memory) Refresh() (int64, error) {
	m.growMu.Lock()
	defer m.growMu.Unlock()
	old := m.size.Swap(m.next)
	if m.next < old {
		m.zero(m.next, old-m.next)
	}
	return m.next, nil
}

// BlockSize implements [Geometry].
func (m *Memory) BlockSize() (logical, physical int) { return SectorSize, 4096 }

// Flush implements [Flusher].
func (m *Memory) Flush() error { return nil }

// ReadAt implements [io.ReaderAt].
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if err := m.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.read(p, off)
	return len(p), nil
}

// ReadvAt implements [Vectored].
func (m *Memory) ReadvAt(bufs [][]byte, off int64) (int, error) {
	n := vecLen(bufs)
	if err := m.check("read", off, n); err != nil {
		return 0, err
	}
	for _, b := range bufs {
		m.read(b, off)
		off += int64(len(b))
	}
	return int(n), nil
}

// WriteAt implements [io.WriterAt].
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if err := m.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	return m.write(p, off)
}

// WritevAt implements [Vectored].
func (m *Memory) WritevAt(bufs [][]byte, off int64) (int, error) {
	if err := m.check("write", off, vecLen(bufs)); err != nil {
		return 0, err
	}
	total := 0
	for _, b := range bufs {
		n, err := m.write(b, off)
		total += n
		if err != nil {
			return total, err
		}
		off += int64(n)
	}
	return total, nil
}

// Discard implements [Discarder]: whole pieces of 64 KiB are freed.
func (m *Memory) Discard(off, n int64) error { return m.WriteZeroes(off, n, true) }

// WriteZeroes implements [ZeroWriter]; memory is freed in any case.
func (m *Memory) WriteZeroes(off, n int64, unmap bool) error {
	if err := m.check("zeroing", off, n); err != nil {
		return err
	}
	m.zero(off, n)
	return nil
}

func (m *Memory) check(what string, off, n int64) error {
	if err := checkRange(off, n, m.size.Load()); err != nil {
		return fmt.Errorf("block: memory image: %s: %w", what, err)
	}
	return nil
}

// chunkOf returns where off lies, and how much of n bytes lies in the same
// chunk.
func (m *Memory) chunkOf(off, n int64) (shard *memoryShard, index, at, piece int64) {
	index, at = off/chunkSize, off%chunkSize
	return &m.shards[index%memoryShards], index, at, min(n, chunkSize-at)
}

func (m *Memory) read(p []byte, off int64) {
	for len(p) > 0 {
		s, index, at, n := m.chunkOf(off, int64(len(p)))
		s.RLock()
		if c := s.chunks[index]; c != nil {
			copy(p[:n], c[at:])
		} else {
			clear(p[:n])
		}
		s.RUnlock()
		p = p[n:]
		off += n
	}
}

func (m *Memory) write(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		s, index, at, n := m.chunkOf(off, int64(len(p)-done))
		s.Lock()
		c := s.chunks[index]
		if c == nil {
			if used := m.used.Add(chunkSize); m.limit > 0 && used > m.limit {
				m.used.Add(-chunkSize)
				s.Unlock()
				return done, fmt.Errorf("block: memory image: write at %d: its limit of %d bytes is used up: %w", off, m.limit, unix.ENOSPC)
			}
			c = new([chunkSize]byte)
			s.chunks[index] = c
		}
		copy(c[at:], p[done:done+int(n)])
		s.Unlock()
		done += int(n)
		off += n
	}
	return done, nil
}

// zero takes time by the chunks there are, not by n.
func (m *Memory) zero(off, n int64) {
	if n <= 0 {
		return
	}
	first, last := off/chunkSize, (off+n-1)/chunkSize
	if last-first < 4*memoryShards {
		for i := first; i <= last; i++ {
			s := &m.shards[i%memoryShards]
			s.Lock()
			m.zeroChunk(s, i, off, off+n)
			s.Unlock()
		}
		return
	}
	for k := range m.shards {
		s := &m.shards[k]
		s.Lock()
		for i := range s.chunks {
			m.zeroChunk(s, i, off, off+n)
		}
		s.Unlock()
	}
}

// zeroChunk zeroes what chunk i has between from and to.
func (m *Memory) zeroChunk(s *memoryShard, i, from, to int64) {
	c := s.chunks[i]
	if c == nil {
		return
	}
	start := i * chunkSize
	lo, hi := max(from-start, 0), min(to-start, chunkSize)
	switch {
	case lo >= hi:
	case lo == 0 && hi == chunkSize:
		delete(s.chunks, i)
		m.used.Add(-chunkSize)
	default:
		clear(c[lo:hi])
	}
}

// Close implements [io.Closer]; it frees the data.
func (m *Memory) Close() error {
	m.zero(0, (m.Size()+chunkSize-1)/chunkSize*chunkSize)
	return nil
}
