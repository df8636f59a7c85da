package blocktest

import (
	"errors"
	"io"
	"math"
	"sync"

	"github.com/vole-vmm/vole/virtio/block"
)

// Op is a set of operations.
type Op uint8

// The operations of an image.
const (
	Read Op = 1 << iota
	Write
	Flush
	Discard
	WriteZeroes
	Refresh
	All = Read | Write | Flush | Discard | WriteZeroes | Refresh
)

// Fault says which operations go wrong, and how. Its zero value but for Ops
// hits every such operation, anywhere, for ever, and does nothing to it but
// count it.
type Fault struct {
	Ops Op
	// From and To bound the bytes that an operation must touch to be hit; To 0
	// is the end. Flush and Refresh touch all.
	From, To int64
	// Times is how often the fault strikes; 0 is always.
	Times int
	// Block holds the operation until Release, before anything else.
	Block bool
	// Short lets only so many bytes of a read or write through, if Err is
	// given or ShortOnly is set.
	Short     int64
	ShortOnly bool
	// Err is what the operation fails with. What comes before Short bytes is
	// done.
	Err error
}

// Faulty is an image with faults. Methods may be called from any goroutine,
// faults added and released at any time.
type Faulty struct {
	img block.Image

	mu     sync.Mutex
	active []*Active
}

// Active is a fault that was put into an image.
type Active struct {
	fault    Fault
	hits     int // under Faulty.mu
	owner    *Faulty
	once     sync.Once
	released chan struct{}
	arrived  chan struct{}
}

// NewFaulty returns img without any fault yet. What img can't do, the Faulty
// image fails with [errors.ErrUnsupported].
func NewFaulty(img block.Image) *Faulty { return &Faulty{img: img} }

// Add makes fault strike from now on. Where several match, the one added last
// does.
func (f *Faulty) Add(fault Fault) *Active {
	a := &Active{fault: fault, owner: f, released: make(chan struct{}), arrived: make(chan struct{}, 1<<10)}
	f.mu.Lock()
	f.active = append(f.active, a)
	f.mu.Unlock()
	return a
}

// Clear takes all faults away and releases what they hold.
func (f *Faulty) Clear() {
	f.mu.Lock()
	old := f.active
	f.active = nil
	f.mu.Unlock()
	for _, a := range old {
		a.Release()
	}
}

// Release lets the operations go that Block holds, now and later.
func (a *Active) Release() { a.once.Do(func() { close(a.released) }) }

// Arrived receives once for each operation that the fault hits, before it is
// held; beyond 1024 that nobody received, hits are only counted.
func (a *Active) Arrived() <-chan struct{} { return a.arrived }

// Hits is how often the fault struck.
func (a *Active) Hits() int {
	a.owner.mu.Lock()
	defer a.owner.mu.Unlock()
	return a.hits
}

// strike returns how many of n bytes are to be done and what is to be returned
// then; done is n if nothing is wrong.
func (f *Faulty) strike(op Op, off, n int64) (done int64, err error) {
	a := f.match(op, off, n)
	if a == nil {
		return n, nil
	}
	select {
	case a.arrived <- struct{}{}:
	default:
	}
	if a.fault.Block {
		<-a.released
	}
	switch {
	case a.fault.Err != nil:
		return min(a.fault.Short, n), a.fault.Err
	case a.fault.ShortOnly && a.fault.Short < n:
		return a.fault.Short, io.ErrUnexpectedEOF
	}
	return n, nil
}

func (f *Faulty) match(op Op, off, n int64) *Active {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.find(op, off, n)
	if a != nil {
		a.hits++
	}
	return a
}

// find is called under f.mu.
func (f *Faulty) find(op Op, off, n int64) *Active {
	for i := len(f.active) - 1; i >= 0; i-- {
		a := f.active[i]
		to := a.fault.To
		if to == 0 {
			to = math.MaxInt64
		}
		if a.fault.Ops&op == 0 || off >= to || off+n <= a.fault.From || a.fault.Times != 0 && a.hits >= a.fault.Times {
			continue
		}
		return a
	}
	return nil
}

// Size implements [block.Image].
func (f *Faulty) Size() int64 { return f.img.Size() }

// ReadOnly implements [block.ReadOnlyer].
func (f *Faulty) ReadOnly() bool { return !block.CanWrite(f.img) }

// BlockSize implements [block.Geometry].
func (f *Faulty) BlockSize() (logical, physical int) {
	if g, ok := f.img.(block.Geometry); ok {
		return g.BlockSize()
	}
	return block.SectorSize, block.SectorSize
}

// ReadAt implements [io.ReaderAt].
func (f *Faulty) ReadAt(p []byte, off int64) (int, error) {
	return f.ReadvAt([][]byte{p}, off)
}

// WriteAt implements [io.WriterAt].
func (f *Faulty) WriteAt(p []byte, off int64) (int, error) {
	return f.WritevAt([][]byte{p}, off)
}

// ReadvAt implements [block.Vectored].
func (f *Faulty) ReadvAt(bufs [][]byte, off int64) (int, error) {
	return f.transfer(Read, block.ReadVec, bufs, off)
}

// WritevAt implements [block.Vectored].
func (f *Faulty) WritevAt(bufs [][]byte, off int64) (int, error) {
	return f.transfer(Write, block.WriteVec, bufs, off)
}

// vecCall is ReadVec or WriteVec of package block.
type vecCall func(img block.Image, bufs [][]byte, off int64) (int, error)

func (f *Faulty) transfer(op Op, call vecCall, bufs [][]byte, off int64) (int, error) {
	do, fault := f.strike(op, off, length(bufs))
	if fault == nil {
		return call(f.img, bufs, off)
	}
	done, err := call(f.img, first(bufs, do), off)
	if err != nil {
		return done, err
	}
	return done, fault
}

func length(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// first returns the first n bytes of bufs.
func first(bufs [][]byte, n int64) [][]byte {
	var part [][]byte
	for _, b := range bufs {
		b = b[:min(int64(len(b)), n)]
		n -= int64(len(b))
		part = append(part, b)
	}
	return part
}

// Flush implements [block.Flusher].
func (f *Faulty) Flush() error {
	if _, err := f.strike(Flush, 0, math.MaxInt64); err != nil {
		return err
	}
	if i, ok := f.img.(block.Flusher); ok {
		return i.Flush()
	}
	return nil
}

// Discard implements [block.Discarder].
func (f *Faulty) Discard(off, n int64) error {
	if _, err := f.strike(Discard, off, n); err != nil {
		return err
	}
	if i, ok := f.img.(block.Discarder); ok {
		return i.Discard(off, n)
	}
	return errors.ErrUnsupported
}

// WriteZeroes implements [block.ZeroWriter].
func (f *Faulty) WriteZeroes(off, n int64, unmap bool) error {
	if _, err := f.strike(WriteZeroes, off, n); err != nil {
		return err
	}
	if i, ok := f.img.(block.ZeroWriter); ok {
		return i.WriteZeroes(off, n, unmap)
	}
	return errors.ErrUnsupported
}

// Refresh implements [block.Refresher].
func (f *Faulty) Refresh() (int64, error) {
	if _, err := f.strike(Refresh, 0, math.MaxInt64); err != nil {
		return 0, err
	}
	if i, ok := f.img.(block.Refresher); ok {
		return i.Refresh()
	}
	return f.Size(), nil
}

// Close implements [io.Closer]. What is held goes on first.
func (f *Faulty) Close() error {
	f.Clear()
	if c, ok := f.img.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
