package console

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/vole-vmm/vole/virtio"
)

// emptyReads is how many times in a row In may return nothing and no error.
const emptyReads = 100

// errHungUp is what a reader with a far end that comes and goes returns when it has
// gone. The next Read waits for the next.
var errHungUp = errors.New("hung up")

// input is a port's way in: a ring between one goroutine that reads In and one that
// moves bytes to the guest. The reader belongs to the device and outlives resets,
// the other belongs to an activation. The reader fills free ring bytes, which
// nobody else touches, without the lock.
type input struct {
	in      io.Reader
	size    int
	ends    bool        // the end of In closes the port
	host    func(bool)  // says whether the host's side is open
	failed  func(error) // told of In's error, if it is not its end
	closing <-chan struct{}

	more  chan struct{} // one token: there is something to give, or the port was opened
	room  chan struct{} // one token: the guest has taken something
	done  chan struct{} // closed when the reader ends
	given atomic.Uint64 // bytes that the guest has got

	// mu is held while bytes go from the ring to the guest: who closes the port
	// under it knows that none goes afterwards. State does not take it.
	mu      sync.Mutex
	ring    []byte
	head, n int
	open    bool // the guest takes bytes
	started bool
	reading bool // the reader is inside In
	err     error
}

func (i *input) init(p *Port, closing <-chan struct{}, host func(bool), failed func(error)) {
	if p != nil {
		i.in, i.ends = p.In, p.Out == nil && !p.Console
		i.size = InBuffer
		if p.Console {
			i.size = ConsoleInBuffer
		}
	}
	i.closing, i.host, i.failed = closing, host, failed
	i.more, i.room, i.done = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
}

// start starts the reader, once.
func (i *input) start() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.in == nil || i.started {
		return
	}
	i.started = true
	i.ring = make([]byte, i.size)
	go i.run()
}

// setOpen says whether the guest takes bytes.
func (i *input) setOpen(open bool) {
	i.mu.Lock()
	i.open = open
	i.mu.Unlock()
	token(i.more)
}

// over reports whether Close was called.
func (i *input) over() bool {
	select {
	case <-i.closing:
		return true
	default:
		return false
	}
}

// run is the reader.
func (i *input) run() {
	defer close(i.done)
	empty := 0
	for {
		free := i.free()
		if free == nil {
			return
		}
		n, err := i.in.Read(free)
		if n < 0 || n > len(free) {
			n, err = 0, io.ErrNoProgress
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty == emptyReads && err == nil {
			err = io.ErrNoProgress
		}
		i.arrive(n)
		switch {
		case err == nil:
		case errors.Is(err, errHungUp):
			if !i.emptied() {
				return
			}
			i.host(false)
			empty = 0
		default:
			i.finish(err)
			return
		}
	}
}

// free waits for free bytes in the ring and returns them in one piece; nil is the
// end. The caller is inside In then.
func (i *input) free() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	for i.n == len(i.ring) && i.wait() {
	}
	if i.over() {
		return nil
	}
	i.reading = true
	from := i.head + i.n
	if from >= len(i.ring) {
		return i.ring[from-len(i.ring) : i.head]
	}
	return i.ring[from:]
}

// wait waits until the guest has taken something and reports false at the end. It
// is called with the lock, which it gives up meanwhile.
func (i *input) wait() bool {
	i.mu.Unlock()
	defer i.mu.Lock()
	select {
	case <-i.room:
		return true
	case <-i.closing:
		return false
	}
}

// arrive takes n bytes that the reader has put into the ring.
func (i *input) arrive(n int) {
	i.mu.Lock()
	i.reading = false
	i.n += n
	i.mu.Unlock()
	if n > 0 {
		token(i.more)
	}
}

// emptied waits until the guest has taken everything and reports false at the end.
func (i *input) emptied() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for i.n > 0 {
		if !i.wait() {
			return false
		}
	}
	return !i.over()
}

// finish is the end of In.
func (i *input) finish(err error) {
	if i.over() {
		return // what Close brings about is no error
	}
	if !errors.Is(err, io.EOF) {
		i.mu.Lock()
		i.err = err
		i.mu.Unlock()
		i.failed(err)
	}
	if i.ends && i.emptied() {
		i.host(false)
	}
}

// What give has found.
type gift int

const (
	nothing  gift = iota // no bytes, or the port is closed
	noBuffer             // the queue has none, or is paused or stopped
	given
)

// give moves bytes to the guest, as far as there are buffers; at most a queue's
// worth, since a guest may make buffers without room available for ever.
func (i *input) give(q *virtio.Queue, c *virtio.Chain) gift {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.open || i.n == 0 {
		return nothing
	}
	got := noBuffer
	for range q.Size() {
		if i.n == 0 || !q.Pop(c) {
			break
		}
		i.fill(c)
		q.Push(c)
		got = given
	}
	return got
}

// fill moves bytes from the ring into a buffer.
func (i *input) fill(c *virtio.Chain) {
	for i.n > 0 {
		k := c.Write(i.ring[i.head:min(i.head+i.n, len(i.ring))])
		if k == 0 {
			return
		}
		i.n -= k
		i.given.Add(uint64(k))
		if i.head += k; i.head == len(i.ring) {
			i.head = 0
		}
		token(i.room)
	}
}

// receive serves a port's receive queue.
func (i *input) receive(q *virtio.Queue) {
	c := virtio.NewChain(q)
	for {
		switch i.give(q, c) {
		case given:
			q.Signal()
		case noBuffer:
			if !q.Wait() {
				return
			}
		case nothing:
			select {
			case <-i.more:
			case <-q.Stopped():
				return
			}
		}
	}
}

// stop ends the reader with Close's patience, after closing was closed: free is
// called to free a goroutine inside In, which is left behind if that does not help.
func (i *input) stop(free func()) {
	i.mu.Lock()
	started, reading := i.started, i.reading
	i.mu.Unlock()
	switch {
	case !started:
	case reading:
		free()
		within(i.done, closeGrace)
	default: // it does not go inside any more
		<-i.done
	}
}
