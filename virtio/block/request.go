package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

// Request types (VIRTIO 1.2, 5.2.6).
const (
	RequestIn          = 0
	RequestOut         = 1
	RequestFlush       = 4
	RequestGetID       = 8
	RequestDiscard     = 11
	RequestWriteZeroes = 13
)

// Values of a request's status byte.
const (
	StatusOK          = 0
	StatusIOError     = 1
	StatusUnsupported = 2
)

const (
	headerSize = 16 // type, reserved, sector
	rangeSize  = 16 // sector, number of sectors, flags
	flagUnmap  = 1
)

// Reasons for a status that is not OK. They cost nothing to return: a hostile
// guest may ask for them all day.
var (
	errUnsupported = errors.New("unknown request or flag")
	errMalformed   = errors.New("malformed request")
	errStopped     = errors.New("the device was reset")
)

// worker works on the requests of a queue, one at a time; its crew shares it.
type worker struct {
	d         *Device
	q         *virtio.Queue
	crew      *virtio.Crew
	pace      *virtio.Pace  // the listener's
	late      bool          // the crew's, under its lock
	lost      bool          // the listener's place, to others
	call      chan struct{} // the crew's, to this worker
	c         *virtio.Chain
	fail      func(error)
	features  uint64 // acknowledged
	flushEach bool   // the driver did not take FLUSH: a write is done when it is stable
	image     Prompt // the image, where requests may be carried out promptly, else nil
	writes    *habit // of the image's writes, where they are buffered, else nil
	status    []byte // the request's
	kind      uint32
	sector    uint64
	debt      time.Duration // from before the activation: a reset pays nothing
	ops       int           // taken from the rate limit by the request
	bytes     int64         // as ops
	header    [headerSize]byte
	id        [MaxSerial]byte
	ranges    [maxRanges * rangeSize]byte
}

func newWorker(d *Device, q *virtio.Queue, c *virtio.Crew, p *virtio.Pace, a virtio.Activation) *worker {
	w := &worker{
		d: d, q: q, crew: c, pace: p, call: make(chan struct{}, 1), c: virtio.NewChain(q),
		fail: a.Fail, features: a.Features,
	}
	if _, ok := d.img.(Flusher); ok {
		w.flushEach = a.Features&FeatureFlush == 0
	}
	if d.opts.Limits == (virtio.Limits{}) {
		w.image, _ = d.img.(Prompt)
	}
	if b, ok := d.img.(Buffered); ok && w.image != nil && b.Buffered() && !w.flushEach {
		w.writes = &d.writes
	}
	copy(w.id[:], d.opts.Serial)
	return w
}

func (w *worker) run() {
	w.wait(w.debt)
	for w.crew.Listen(w.call) {
		ok, listening := w.take()
		if listening {
			w.crew.Leave(!ok)
		}
		if ok {
			w.end(w.do())
			w.q.Push(w.c)
			w.q.Signal()
			// Only now: a request that waited would be in flight, and the device
			// could be neither paused nor reset.
			if w.ops > 0 {
				w.wait(w.d.limiter.Reserve(w.ops, w.bytes))
			}
		}
	}
}

// take waits for the next request that takes time, and carries out those that don't on
// its way to it. ok is false when the queue is stopped, or when one of those has taken so
// long that others have the listener's place: listening is false then.
func (w *worker) take() (ok, listening bool) {
	untold := 0
	for {
		if !w.q.Pop(w.c) {
			// What is untold here was followed by a pause, or a driver that goes back.
			if untold > 0 {
				w.q.Signal()
				untold = 0
			} else if !w.q.Wait() {
				return false, true
			}
			continue
		}
		w.pace.Took()
		if w.begin() && !w.prompt() {
			if untold > 0 {
				w.q.Signal()
			}
			return true, true
		}
		w.q.Push(w.c)
		if w.lost {
			w.lost = false
			w.q.Signal()
			return false, false
		}
		untold++
		if !w.pace.More(untold) {
			w.pace.Tell()
			untold = 0
			w.pace.Watch()
		}
	}
}

// begin reads what the chain asks for. It reports false if that is nothing: then the
// request is at its end.
func (w *worker) begin() bool {
	w.ops, w.bytes = 0, 0
	// The status is the last byte that is the device's (rule 16).
	if w.status = w.c.Trailer(1); w.status == nil {
		w.fail(fmt.Errorf("block: %w: a request without a byte for its status", virtio.ErrBroken))
		return false
	}
	if w.c.Read(w.header[:]) < headerSize {
		w.end(errMalformed)
		return false
	}
	w.kind = binary.LittleEndian.Uint32(w.header[:])
	w.sector = binary.LittleEndian.Uint64(w.header[8:])
	return true
}

// prompt carries out a transfer that takes no wait, and reports whether it has. If not,
// nothing was done that can't be done again.
func (w *worker) prompt() bool {
	if w.image == nil {
		return false
	}
	switch w.kind {
	case RequestIn:
		n := w.c.WritableLen()
		if n > promptMax {
			return false
		}
		if off, err := w.span(w.sector, n); err != nil || !w.image.TryReadvAt(w.c.Writable(), off) {
			return false
		}
		w.c.Wrote(n)
	case RequestOut:
		n := w.c.ReadableLen()
		if n > promptMax || w.flushEach || w.d.features&FeatureReadOnly != 0 {
			return false
		}
		off, err := w.span(w.sector, n)
		if err != nil {
			return false
		}
		if w.image.TryWritevAt(w.c.Readable(), off) {
			break
		}
		if w.writes == nil || !w.writes.quick() || !w.writes.concerns(off, int64(n)) {
			return false
		}
		w.crew.Enter(&w.late)
		w.end(w.write())
		w.lost = !w.crew.Exit(&w.late)
		return true
	default:
		return false
	}
	w.end(nil)
	return true
}

// wait returns after d, or when the queue is stopped.
func (w *worker) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	fired, stop := w.d.clock.After(d)
	defer stop()
	select {
	case <-fired:
	case <-w.q.Stopped():
	}
}

// stopped reports whether the device was reset.
func (w *worker) stopped() bool {
	select {
	case <-w.q.Stopped():
		return true
	default:
		return false
	}
}

// end writes the status of a request that has come to err.
func (w *worker) end(err error) {
	switch {
	case err == nil:
		w.status[0] = StatusOK
	case err == errUnsupported:
		w.status[0] = StatusUnsupported
	default:
		w.status[0] = StatusIOError
		// What the guest got wrong is the guest's to report.
		if err != errMalformed && err != errStopped && err != ErrReadOnly {
			w.d.failed(requestName(w.kind), w.sector, err)
		}
	}
	w.c.WroteTrailer(1)
}

func requestName(kind uint32) string {
	switch kind {
	case RequestIn:
		return "read"
	case RequestOut:
		return "write"
	case RequestFlush:
		return "flush"
	case RequestDiscard:
		return "discard"
	case RequestWriteZeroes:
		return "write zeroes"
	}
	return "other"
}

// do carries out the request, as long as that takes.
func (w *worker) do() error {
	img, sector := w.d.img, w.sector
	switch w.kind {
	case RequestIn:
		off, err := w.span(sector, w.c.WritableLen())
		if err != nil {
			return err
		}
		want := w.c.WritableLen()
		n, err := ReadVec(img, w.c.Writable(), off)
		w.c.Wrote(uint64(max(n, 0)))
		if err == nil && uint64(n) != want {
			err = io.ErrUnexpectedEOF // an image at fault: what is missing is not zeroes
		}
		return err
	case RequestOut:
		if w.d.features&FeatureReadOnly != 0 {
			return ErrReadOnly
		}
		return w.write()
	case RequestFlush:
		// A driver without FLUSH has a disk that writes through: whatever it was
		// told is done is stable already (5.2.6.2, the first condition), and there
		// is no such request for it, as with DISCARD. On a disk that can't be
		// written, or has nothing to flush, it was not even on offer.
		if w.features&FeatureFlush == 0 {
			return errUnsupported
		}
		w.ops = 1
		return img.(Flusher).Flush()
	case RequestGetID:
		w.c.Write(w.id[:])
		return nil
	case RequestDiscard, RequestWriteZeroes:
		return w.clear(w.kind)
	}
	return errUnsupported
}

// write carries out a write.
func (w *worker) write() error {
	want := w.c.ReadableLen()
	off, err := w.span(w.sector, want)
	if err != nil {
		return err
	}
	var start time.Duration
	timed := w.writes != nil && w.writes.concerns(off, int64(want))
	if timed {
		start = w.d.clock.Now()
	}
	n, err := WriteVec(w.d.img, w.c.Readable(), off)
	if timed {
		w.writes.took(w.d.clock.Now() - start)
	}
	if err == nil && uint64(n) != want {
		err = io.ErrShortWrite
	}
	if err == nil && w.flushEach {
		err = w.d.img.(Flusher).Flush()
	}
	return err
}

// span checks a transfer of n bytes at a sector against the disk, charges it to
// the rate limit, and returns its offset in the image.
func (w *worker) span(sector, n uint64) (int64, error) {
	size := uint64(w.d.img.Size())
	// A chain may have one buffer many times.
	if n == 0 || n%SectorSize != 0 || n > w.d.longest {
		return 0, errMalformed
	}
	// Compared in sectors, nothing can wrap.
	if have := size / SectorSize; sector > have || n/SectorSize > have-sector {
		return 0, errMalformed
	}
	w.ops, w.bytes = 1, int64(n)
	return int64(sector * SectorSize), nil
}

// clear carries out DISCARD and WRITE_ZEROES: all ranges are checked before the
// first is touched (5.2.6.2).
func (w *worker) clear(kind uint32) error {
	zeroes := kind == RequestWriteZeroes
	want, ranges, most := FeatureDiscard, maxRanges, uint64(maxRangeSectors)
	if zeroes {
		want, ranges, most = FeatureWriteZeroes, 1, maxZeroSectors
	}
	switch n := w.c.ReadableLen(); {
	case w.d.features&FeatureReadOnly != 0:
		return ErrReadOnly
	case w.features&want == 0:
		return errUnsupported
	case n == 0 || n%rangeSize != 0 || n > uint64(ranges*rangeSize):
		return errMalformed
	}
	list := w.ranges[:w.c.Read(w.ranges[:])]
	have := uint64(w.d.img.Size()) / SectorSize
	for at := 0; at < len(list); at += rangeSize {
		r := decodeRange(list[at:])
		switch {
		case r.flags&^flagUnmap != 0 || r.flags != 0 && !zeroes:
			return errUnsupported
		case r.count > most || r.sector > have || r.count > have-r.sector:
			return errMalformed
		}
	}
	done := 0
	w.ops = 1 // also of nothing but empty ranges: it may have something flushed
	for at := 0; at < len(list); at += rangeSize {
		r := decodeRange(list[at:])
		if r.count == 0 {
			continue
		}
		if w.stopped() {
			return errStopped
		}
		done++
		w.ops = done
		off, n := int64(r.sector*SectorSize), int64(r.count*SectorSize)
		var err error
		if zeroes {
			err = w.zero(off, n, r.flags&flagUnmap != 0)
		} else if err = w.d.img.(Discarder).Discard(off, n); errors.Is(err, errors.ErrUnsupported) {
			err = nil // a hint that this storage can't take; the guest need not know
		}
		if err != nil {
			return err
		}
	}
	if w.flushEach {
		return w.d.img.(Flusher).Flush()
	}
	return nil
}

// zero makes n bytes at off zeroes, in pieces: an image that has to write them may
// take long. They end where the blocks of any image do.
func (w *worker) zero(off, n int64, unmap bool) error {
	if !unmap {
		w.bytes += n
	}
	for end := off + n; off < end; {
		if w.stopped() {
			return errStopped
		}
		piece := min(end-off, zeroPiece-off%zeroPiece)
		if err := w.d.img.(ZeroWriter).WriteZeroes(off, piece, unmap); errors.Is(err, errors.ErrUnsupported) {
			return errUnsupported // the guest writes the zeroes itself
		} else if err != nil {
			return err
		}
		off += piece
	}
	return nil
}

type sectorRange struct {
	sector, count uint64
	flags         uint32
}

func decodeRange(b []byte) sectorRange {
	return sectorRange{
		sector: binary.LittleEndian.Uint64(b),
		count:  uint64(binary.LittleEndian.Uint32(b[8:])),
		flags:  binary.LittleEndian.Uint32(b[12:]),
	}
}

var _ io.Closer = (*Device)(nil)
