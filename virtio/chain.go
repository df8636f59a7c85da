package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Flags of a descriptor (section 2.7.5).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	descSize     = 16
)

// ErrBroken reports that the driver has broken the rules of a queue. The error
// that wraps it says how.
var ErrBroken = errors.New("virtio: broken queue")

// Chain is a request: the buffers of one descriptor chain, first those that the
// device reads, then those that it writes. A Chain is filled by [Queue.Pop]
// and may be filled again once it was pushed; it is used by one goroutine at a
// time.
//
// The buffers are guest RAM, which a driver at fault may change at any time:
// what is decided on is copied out first. No framing may be assumed (section
// 2.7.4): Read and Write go over the ends of buffers.
type Chain struct {
	head    uint16
	bufs    [][]byte // readable, then writable
	split   int      // bufs[:split] are readable
	out     cursor
	in      cursor
	written uint32
}

// cursor is a position in a list of buffers.
type cursor struct {
	at   int // index of the first buffer with bytes left
	left uint64
}

// NewChain returns a chain with room for the longest that q can hold.
func NewChain(q *Queue) *Chain {
	return &Chain{bufs: make([][]byte, 0, q.size)}
}

// Readable returns what is left of the buffers that the device reads. It is
// valid until the next call of a method.
func (c *Chain) Readable() [][]byte { return c.bufs[c.out.at:c.split] }

// Writable returns what is left of the buffers that the device writes. Who
// fills them otherwise than by Write calls [Chain.Wrote].
func (c *Chain) Writable() [][]byte { return c.bufs[c.in.at:] }

// ReadableLen is the number of bytes in Readable.
func (c *Chain) ReadableLen() uint64 { return c.out.left }

// WritableLen is the number of bytes in Writable.
func (c *Chain) WritableLen() uint64 { return c.in.left }

// Read copies the next bytes for the device to p and returns how many: fewer
// than len(p) only at the end.
func (c *Chain) Read(p []byte) int {
	n := 0
	for n < len(p) && c.out.at < c.split {
		k := copy(p[n:], c.bufs[c.out.at])
		n += k
		c.advance(&c.out, k)
	}
	return n
}

// Write copies p to the next bytes for the driver and returns how many there
// was room for.
func (c *Chain) Write(p []byte) int {
	n := 0
	for n < len(p) && c.in.at < len(c.bufs) {
		k := copy(c.bufs[c.in.at], p[n:])
		n += k
		c.advance(&c.in, k)
	}
	c.written += uint32(n)
	return n
}

// Wrote says that the first n bytes of Writable were filled, and goes past
// them. More than there are count as all.
func (c *Chain) Wrote(n uint64) {
	n = min(n, c.in.left)
	c.written += uint32(n)
	for n > 0 {
		k := min(uint64(len(c.bufs[c.in.at])), n)
		c.advance(&c.in, int(k))
		n -= k
	}
}

// Trailer cuts the last n bytes off Writable and copies them nowhere: it returns
// where they are, in one piece. It is nil if they are not, or not there.
func (c *Chain) Trailer(n int) []byte {
	last := len(c.bufs) - 1
	if last < c.in.at || len(c.bufs[last]) < n {
		return nil
	}
	b := c.bufs[last]
	cut := len(b) - n
	c.in.left -= uint64(n)
	if c.bufs[last] = b[:cut]; cut == 0 {
		c.bufs = c.bufs[:last]
	}
	return b[cut:]
}

// WroteTrailer says that a trailer of n bytes was filled. It counts only if
// everything before it was filled too: the length that the driver is told is
// that of an unbroken run from the first byte (section 2.7.8.2).
func (c *Chain) WroteTrailer(n int) {
	if c.in.left == 0 {
		c.written += uint32(n)
	}
}

// advance consumes k bytes of the buffer at cur.
func (c *Chain) advance(cur *cursor, k int) {
	cur.left -= uint64(k)
	if b := c.bufs[cur.at][k:]; len(b) > 0 {
		c.bufs[cur.at] = b
		return
	}
	cur.at++
}

// descriptor is a copy of an entry of a descriptor table.
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

func loadDescriptor(table []byte, i int) descriptor {
	b := table[i*descSize : (i+1)*descSize]
	// Two loads: each field is read once.
	addr, rest := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	return descriptor{addr: addr, len: uint32(rest), flags: uint16(rest >> 32), next: uint16(rest >> 48)}
}

// fill takes the chain that begins at head (rules 11 to 13).
func (c *Chain) fill(q *Queue, head uint16) error {
	c.head, c.bufs, c.split, c.written = head, c.bufs[:0], -1, 0
	c.out, c.in = cursor{}, cursor{}
	table, entries, i := q.desc, int(q.size), int(head)
	var total uint64
	indirect := false
	for n := 0; ; n++ {
		if n >= int(q.size) {
			return fmt.Errorf("%w: the chain at %d is longer than the queue's %d descriptors", ErrBroken, head, q.size)
		}
		d := loadDescriptor(table, i)
		if d.flags&descIndirect != 0 {
			switch {
			case !q.indirect:
				return fmt.Errorf("%w: descriptor %d is indirect, which was not negotiated", ErrBroken, i)
			case indirect:
				return fmt.Errorf("%w: an indirect table of the chain at %d has an indirect descriptor", ErrBroken, head)
			case d.flags&descNext != 0:
				return fmt.Errorf("%w: descriptor %d is indirect and has a next one", ErrBroken, i)
			case d.len == 0 || d.len%descSize != 0:
				return fmt.Errorf("%w: descriptor %d points to an indirect table of %d bytes", ErrBroken, i, d.len)
			}
			t, err := q.mem.Slice(d.addr, uint64(d.len))
			if err != nil {
				return fmt.Errorf("%w: descriptor %d points to an indirect table: %w", ErrBroken, i, err)
			}
			table, entries, i, indirect = t, len(t)/descSize, 0, true
			n-- // the descriptor that points to a table is no part of the chain
			continue
		}
		if total += uint64(d.len); total > math.MaxUint32 {
			return fmt.Errorf("%w: the chain at %d has %d bytes and more", ErrBroken, head, total)
		}
		b, err := q.mem.Slice(d.addr, uint64(d.len))
		if err != nil {
			return fmt.Errorf("%w: descriptor %d of the chain at %d: %w", ErrBroken, i, head, err)
		}
		switch write := d.flags&descWrite != 0; {
		case write:
			if c.split < 0 {
				c.split = len(c.bufs)
			}
			c.in.left += uint64(len(b))
		case c.split >= 0:
			return fmt.Errorf("%w: the chain at %d has a readable buffer behind a writable one", ErrBroken, head)
		default:
			c.out.left += uint64(len(b))
		}
		if len(b) > 0 {
			c.bufs = append(c.bufs, b)
		}
		if d.flags&descNext == 0 {
			break
		}
		if i = int(d.next); i >= entries {
			return fmt.Errorf("%w: the chain at %d goes on at %d of %d descriptors", ErrBroken, head, i, entries)
		}
	}
	if c.split < 0 {
		c.split = len(c.bufs)
	}
	c.in.at = c.split
	return nil
}
