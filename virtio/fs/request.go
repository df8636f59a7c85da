package fs

import (
	"encoding/binary"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vole-vmm/vole/virtio"
)

const (
	smallSize = 1 << 10 // of a request that needs no pooled buffer
	replySize = outHeaderSize + 4<<10
	bigSize   = maxPayload + 512
)

// buffers are for what is too large for a request's own.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[bigSize]byte {
	if p, ok := b.pool.Get().(*[bigSize]byte); ok {
		return p
	}
	return new([bigSize]byte)
}

func (b *buffers) put(p *[bigSize]byte) {
	if p != nil {
		b.pool.Put(p)
	}
}

// request is a FUSE request on its way through the device. One goroutine uses it
// at a time, for one request after the other.
type request struct {
	d *Device
	q *virtio.Queue
	c *virtio.Chain

	opcode uint32
	kind   *kind
	in     []byte         // the copy of the request, without the data of a WRITE
	out    []byte         // where a reply goes that is copied to the guest
	bigIn  *[bigSize]byte // nil, or pooled ones
	bigOut *[bigSize]byte

	readable, writable [][]byte // as the library takes them
	small              [smallSize]byte
	reply              [replySize]byte
}

func newRequest(d *Device, q *virtio.Queue) *request {
	r, ok := d.spare.Get().(*request)
	if !ok {
		r = &request{d: d, c: new(virtio.Chain)}
	}
	r.q = q
	return r
}

// serve carries a request out that was popped and gives it back. It has done neither
// if the request may have to wait for long: then it has a place among those, which is
// returned, and serveApart is to follow.
func (r *request) serve() (place chan struct{}) {
	errno := r.parse()
	switch {
	case errno != 0:
		r.end(r.refuse(errno))
	case r.opcode == opInit:
		r.end(r.begin())
	case r.opcode == opDestroy:
		if !r.d.session.end() {
			errno = syscall.EIO
		}
		r.end(r.status(errno))
	case r.opcode == opNotifyReply:
		r.end(0) // nothing was asked for
	case r.opcode == opSetLkw:
		select {
		case r.d.blocked <- struct{}{}:
			return r.d.blocked
		default:
			r.d.stats.outOfLocks.Add(1)
			r.end(r.status(syscall.ENOLCK))
		}
	case r.opcode == opSyncFS:
		select {
		case r.d.syncs <- struct{}{}:
			return r.d.syncs
		default:
			r.end(r.ask())
		}
	default:
		r.end(r.ask())
	}
	return nil
}

// serveApart carries a request out that may have to wait for long, and frees its
// place. It is called by a goroutine of the device, and returns at once.
func (d *Device) serveApart(r *request, place chan struct{}) {
	d.work.Go(func() {
		n := r.ask()
		<-place
		r.end(n)
		d.spare.Put(r)
	})
}

// ask has the session answer, and is then as handle.
func (r *request) ask() int {
	server, flags := r.d.session.enter()
	if server == nil {
		return r.refuse(syscall.EIO)
	}
	defer r.d.session.leave()
	if r.opcode == opSetXattr && flags&fuse.CAP_SETXATTR_EXT != 0 && len(r.in) < longSetXattr {
		r.d.stats.malformed.Add(1)
		return r.refuse(syscall.EINVAL)
	}
	return r.handle(server)
}

// hiprio serves the queue of that name.
func (r *request) hiprio() {
	for r.q.Wait() {
		unsaid := 0
		for r.q.Pop(r.c) {
			r.urgent()
			// The driver need not be told of each: nobody waits for a FORGET.
			if unsaid++; unsaid == hiprioQueueSize/4 {
				r.q.Signal()
				unsaid = 0
			}
		}
		if unsaid > 0 {
			r.q.Signal()
		}
	}
}

// urgent carries out a request of the hiprio queue, which only has those that wait
// for nothing (VIRTIO 1.2, 5.11.6.2).
func (r *request) urgent() {
	errno := r.parse()
	if errno == 0 && r.opcode != opForget && r.opcode != opBatchForget && r.opcode != opInterrupt {
		errno = syscall.EOPNOTSUPP
	}
	if errno != 0 {
		r.push(r.refuse(errno))
		return
	}
	r.push(r.ask())
}

// parse copies the request and looks at it. An error is the reply's.
func (r *request) parse() syscall.Errno {
	r.kind, r.opcode = &kinds[0], 0
	total := r.c.ReadableLen()
	r.in = r.small[:r.c.Read(r.small[:inHeaderSize])]
	if len(r.in) < inHeaderSize {
		r.d.stats.malformed.Add(1)
		return syscall.EINVAL
	}
	opcode := binary.LittleEndian.Uint32(r.in[offOpcode:])
	r.kind = kindOf(opcode)
	if r.kind.name == "" {
		r.d.stats.requests[0].Add(1)
		return syscall.ENOSYS
	}
	r.opcode = opcode
	r.d.stats.requests[opcode].Add(1)
	errno := r.fetch(total)
	if errno == 0 {
		errno = r.prepare()
	}
	if errno == syscall.EINVAL || errno == syscall.E2BIG {
		r.d.stats.malformed.Add(1)
	}
	return errno
}

// fetch copies what is behind the header.
func (r *request) fetch(total uint64) syscall.Errno {
	if uint64(binary.LittleEndian.Uint32(r.in[offLength:])) != total || total < uint64(r.kind.in) {
		return syscall.EINVAL
	}
	// No extension was negotiated.
	binary.LittleEndian.PutUint16(r.in[offExtensions:], 0)
	private := total
	if r.opcode == opWrite {
		private = uint64(r.kind.in)
	}
	switch {
	case private > uint64(r.kind.in)+maxPayload:
		return syscall.E2BIG
	case private > smallSize:
		r.bigIn = r.d.buffers.get()
		copy(r.bigIn[:], r.in)
		r.in = r.bigIn[:private]
	default:
		r.in = r.small[:private]
	}
	r.c.Read(r.in[inHeaderSize:])
	return 0
}

// prepare bounds the request's sizes, and lays out what the library reads and
// writes.
func (r *request) prepare() syscall.Errno {
	node := binary.LittleEndian.Uint64(r.in[offNode:])
	if node == libraryNode {
		return syscall.ESTALE
	}
	if r.kind.names && node == rootNode && isLibraryName(r.in[r.kind.in:]) {
		return syscall.ENOENT
	}
	fixed, payload := r.kind.out, 0
	switch r.opcode {
	case opInit:
		if binary.LittleEndian.Uint32(r.in[offMajor:]) != protocolMajor || binary.LittleEndian.Uint32(r.in[offMinor:]) < oldestMinor {
			return syscall.EPROTO
		}
	case opWrite:
		n := uint64(binary.LittleEndian.Uint32(r.in[offSize:]))
		if n != r.c.ReadableLen() || n > MaxData {
			return syscall.EINVAL
		}
	case opRead:
		n := binary.LittleEndian.Uint32(r.in[offSize:])
		if n > MaxData {
			return syscall.EINVAL
		}
		payload = int(n)
	case opReaddir, opReaddirPlus:
		payload = clamp(r.in[offSize:])
	case opGetXattr, opListXattr:
		if payload = clamp(r.in[offXattrSize:]); payload > 0 {
			fixed = 0
		}
	case opIoctl:
		payload = clamp(r.in[offIoctlOut:])
	case opReadlink:
		payload = maxLink
	case opBatchForget:
		if n := uint64(binary.LittleEndian.Uint32(r.in[offCount:])); n*batchEntrySize != uint64(len(r.in)-r.kind.in) {
			return syscall.EINVAL
		}
	}
	room := r.c.WritableLen()
	need := outHeaderSize + fixed + payload
	switch {
	case r.kind.silent || r.opcode == opInterrupt:
	case r.opcode == opReadlink:
		// The driver does not say how much it has room for.
	case room < uint64(need):
		return syscall.EINVAL
	}
	r.readable = append(r.readable[:0], r.in)
	if r.opcode == opWrite {
		r.readable = append(r.readable, r.c.Readable()...)
	}
	if r.opcode == opRead {
		r.out = r.reply[:outHeaderSize]
		r.writable = part(append(r.writable[:0], r.out), r.c.Writable(), outHeaderSize, payload)
		return 0
	}
	r.out = r.reply[:]
	if need > len(r.out) {
		r.bigOut = r.d.buffers.get()
		r.out = r.bigOut[:]
	}
	r.out = r.out[:need]
	r.writable = append(r.writable[:0], r.out)
	return 0
}

// isLibraryName reports whether a payload begins with the name that the library
// treats in its own way.
func isLibraryName(payload []byte) bool {
	const n = len(libraryName)
	return len(payload) >= n && string(payload[:n]) == libraryName && (len(payload) == n || payload[n] == 0)
}

// clamp bounds the size of a reply that stands in b: what asks for more gets what
// there is of it, as from a file system that has no more.
func clamp(b []byte) int {
	n := min(binary.LittleEndian.Uint32(b), maxReply)
	binary.LittleEndian.PutUint32(b, n)
	return int(n)
}

// part appends to dst the parts of bufs that make up n bytes from byte skip on.
func part(dst, bufs [][]byte, skip, n int) [][]byte {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		skip = 0
		if len(b) >= n {
			if n > 0 {
				dst = append(dst, b[:n:n])
			}
			break
		}
		n -= len(b)
		dst = append(dst, b)
	}
	return dst
}

// begin answers INIT.
func (r *request) begin() int {
	server := r.d.session.start()
	if server == nil {
		return r.status(syscall.EIO)
	}
	n := r.handle(server)
	ok, flags := r.errno(n) == 0, uint32(0)
	if ok {
		flags = binary.LittleEndian.Uint32(r.out[offInitFlags:])
	}
	r.d.session.started(ok, flags)
	return n
}

// handle has the library answer. It returns the length of the reply, 0 for none
// and -1 for a reply that can't be sent. Except for READ's data it is in r.out.
func (r *request) handle(server *fuse.ProtocolServer) (n int) {
	defer func() {
		if p := recover(); p != nil {
			r.d.panicked(p)
			n = -1
		}
	}()
	if r.opcode == opSyncFS {
		return r.syncFS()
	}
	n, status := server.HandleRequest(r.readable, r.writable)
	switch {
	case n == 0 && status == fuse.OK && (r.kind.silent || r.opcode == opInterrupt):
		return 0
	case n < outHeaderSize || uint64(n) != uint64(binary.LittleEndian.Uint32(r.out)):
		return -1 // longer than there was room for
	}
	return n
}

// syncFS answers SYNCFS, which the library does not know.
func (r *request) syncFS() int {
	s, ok := r.d.session.fsys.(Syncing)
	if !ok {
		return r.status(syscall.ENOSYS)
	}
	if r.d.cached.Load() {
		return r.status(0)
	}
	return r.status(syscall.Errno(s.SyncFS(r.d.session.ends())))
}

// errno is the status in a reply of n bytes, EIO for one that can't be sent.
func (r *request) errno(n int) syscall.Errno {
	switch {
	case n < 0:
		return syscall.EIO
	case n == 0:
		return 0
	}
	return syscall.Errno(-int32(binary.LittleEndian.Uint32(r.out[4:])))
}

// refuse makes a reply to a request that does not reach the library, if it has
// one.
func (r *request) refuse(errno syscall.Errno) int {
	if r.kind.silent || r.opcode == opInterrupt || len(r.in) < inHeaderSize {
		r.d.stats.errors.Add(1)
		return 0
	}
	return r.status(errno)
}

// status makes a reply that is only a header, with an error or 0 for none.
func (r *request) status(errno syscall.Errno) int {
	r.out = r.reply[:outHeaderSize]
	binary.LittleEndian.PutUint32(r.out, outHeaderSize)
	binary.LittleEndian.PutUint32(r.out[4:], uint32(-int32(errno)))
	copy(r.out[8:], r.in[offUnique:offUnique+8])
	return outHeaderSize
}

// end gives the request back with a reply of n bytes.
func (r *request) end(n int) {
	r.push(n)
	r.q.Signal()
}

// push is end without telling the driver.
func (r *request) push(n int) {
	read := r.opcode == opRead
	if n < 0 || n > 0 && uint64(n) > r.c.WritableLen() {
		n, read = r.status(syscall.EIO), false
	}
	if n > 0 {
		if r.errno(n) != 0 {
			r.d.stats.errors.Add(1)
		}
		if r.c.WritableLen() < outHeaderSize {
			n = 0 // it is the driver's not to know; an INTERRUPT may want none
		}
	}
	if n > 0 {
		if read {
			r.c.Write(r.out[:outHeaderSize])
			r.c.Wrote(uint64(n - outHeaderSize)) // they are there
			r.d.stats.read.Add(uint64(n - outHeaderSize))
		} else {
			r.c.Write(r.out[:n])
			if r.opcode == opWrite && n > outHeaderSize {
				r.d.stats.written.Add(uint64(binary.LittleEndian.Uint32(r.out[outHeaderSize:])))
			}
		}
	}
	r.d.buffers.put(r.bigIn)
	r.d.buffers.put(r.bigOut)
	r.bigIn, r.bigOut = nil, nil
	r.in, r.out = nil, nil
	clear(r.readable)
	clear(r.writable)
	r.q.Push(r.c)
}
