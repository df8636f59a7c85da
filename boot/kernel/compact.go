package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

const (
	pageSize = 4096

	// minGap is the shortest run of zero bytes that is left out of a segment.
	// Leaving it out saves the host one page fault a page and costs the loader
	// one more read.
	minGap = 4 * pageSize

	// maxHead bounds how far into the file the program headers may lie.
	maxHead = 64 << 10

	// maxSegments is how many program headers the compact file may have: they
	// fit into its first page, and loaders that bound them (boot at 64) agree.
	maxSegments = 48

	compactBuffer = 1 << 20
)

// compactor is an io.Writer that takes a vmlinux as a stream and stores it for
// fast loading: one page of headers, then the bytes of the PT_LOAD segments,
// split where pages are zero. Each segment's offset, virtual and physical
// address stay congruent modulo the page size, so that the file can be mapped.
// What is outside every segment is dropped.
//
// A file whose headers it does not fully understand it stores as it is. Call
// finish at the end.
type compactor struct {
	f   io.WriterAt
	buf []byte // bytes of the file up to end that are not written yet
	end int64  // size of the file so far, with buf

	in       int64  // bytes taken from the stream
	head     []byte // the stream's start, until there is a plan
	planned  bool
	verbatim bool

	segments []progHeader // PT_LOAD by ascending Offset
	others   []progHeader
	pieces   []progHeader // of the compact file
	current  int          // index in segments
	page     []byte       // the page of the current segment that is being filled
	gap      int64        // zero bytes seen since the last piece's end
}

func newCompactor(f io.WriterAt) *compactor {
	return &compactor{f: f, buf: make([]byte, 0, compactBuffer), page: make([]byte, 0, pageSize)}
}

// errShort is the error of finish when the stream ended before its segments.
var errShort = errors.New("the vmlinux ends before its last segment")

func (c *compactor) Write(p []byte) (int, error) {
	n := len(p)
	if !c.planned {
		c.head = append(c.head, p...)
		if !c.plan(c.head) {
			return n, nil
		}
		p, c.head = c.head, nil
	}
	return n, c.consume(p)
}

// plan decides how to store the file, once head has all program headers, and
// reports whether it has decided.
func (c *compactor) plan(head []byte) bool {
	if len(head) < ehdrSize {
		return false
	}
	le := binary.LittleEndian
	phoff, phnum := le.Uint64(head[ehdrPhoff:]), uint64(le.Uint16(head[ehdrPhnum:]))
	if le.Uint16(head[ehdrPhentsize:]) != phdrSize || phoff < ehdrSize || phoff > maxHead || phoff+phnum*phdrSize > maxHead {
		c.keep()
		return true
	}
	if uint64(len(head)) < phoff+phnum*phdrSize {
		return false
	}
	c.planned = true
	for i := range phnum {
		p := decodeProgHeader(head[phoff+i*phdrSize:])
		if p.Type == ptLoad {
			c.segments = append(c.segments, p)
		} else {
			c.others = append(c.others, p)
		}
	}
	slices.SortStableFunc(c.segments, func(a, b progHeader) int { return cmp.Compare(a.Offset, b.Offset) })
	if !c.understood() {
		c.keep()
		return true
	}
	c.buf = append(c.buf, make([]byte, pageSize)...)
	copy(c.buf, head[:ehdrSize])
	c.end = pageSize
	return true
}

// keep makes the rest of the stream, from its start, go into the file as it is.
func (c *compactor) keep() {
	c.planned, c.verbatim = true, true
	c.segments, c.others = nil, nil
}

// understood says whether the segments can be moved and split.
func (c *compactor) understood() bool {
	if len(c.segments) == 0 || len(c.segments)+len(c.others) > maxSegments {
		return false
	}
	end := uint64(0)
	for _, s := range c.segments {
		if s.Filesz > s.Memsz || s.Filesz > MaxSize || s.Offset < end || s.Offset > MaxSize ||
			s.Paddr+s.Memsz < s.Paddr || s.Vaddr+s.Memsz < s.Vaddr {
			return false
		}
		if (s.Offset^s.Paddr)%pageSize != 0 || (s.Offset^s.Vaddr)%pageSize != 0 {
			return false
		}
		end = s.Offset + s.Filesz
	}
	if overlap(c.segments) {
		return false
	}
	for _, o := range c.others {
		if o.Filesz > 0 && !slices.ContainsFunc(c.segments, func(s progHeader) bool { return within(o, s) }) {
			return false
		}
	}
	return true
}

// overlap says whether two segments have physical memory in common: then it
// matters which one is written last, zeroes too.
func overlap(segments []progHeader) bool {
	byAddress := slices.Clone(segments)
	slices.SortFunc(byAddress, func(a, b progHeader) int { return cmp.Compare(a.Paddr, b.Paddr) })
	for i := range byAddress[1:] {
		if a, b := byAddress[i], byAddress[i+1]; a.Paddr+a.Memsz > b.Paddr {
			return true
		}
	}
	return false
}

// within says whether the bytes of p in the file are bytes of s.
func within(p, s progHeader) bool {
	return p.Offset >= s.Offset && p.Filesz <= s.Filesz && p.Offset-s.Offset <= s.Filesz-p.Filesz
}

// consume takes the next bytes of the stream.
func (c *compactor) consume(p []byte) error {
	if c.verbatim {
		c.in += int64(len(p))
		return c.emit(p)
	}
	for {
		c.advance()
		if len(p) == 0 || c.current == len(c.segments) {
			break
		}
		s := c.segments[c.current]
		if skip := int64(s.Offset) - c.in; skip > 0 {
			n := min(skip, int64(len(p)))
			p, c.in = p[n:], c.in+n
			continue
		}
		left := int64(s.Offset+s.Filesz) - c.in
		n := min(left, int64(len(p)), pageSize-c.in%pageSize)
		c.page = append(c.page, p[:n]...)
		p, c.in, left = p[n:], c.in+n, left-n
		if left == 0 || c.in%pageSize == 0 {
			if err := c.flushPage(s); err != nil {
				return err
			}
		}
	}
	c.in += int64(len(p))
	return nil
}

// advance leaves the current segment when all its bytes have come.
func (c *compactor) advance() {
	for c.current < len(c.segments) {
		s := c.segments[c.current]
		if int64(s.Offset+s.Filesz) > c.in {
			return
		}
		if s.Filesz == 0 {
			c.pieces = append(c.pieces, progHeader{Type: s.Type, Flags: s.Flags, Vaddr: s.Vaddr, Paddr: s.Paddr,
				Offset: uint64(c.end) + (s.Paddr-uint64(c.end))%pageSize, Memsz: s.Memsz, Align: pageSize})
		}
		c.current++
		c.gap = 0
	}
}

// flushPage stores the page of segment s that has been filled, or counts it as
// part of a gap.
func (c *compactor) flushPage(s progHeader) error {
	data := c.page
	c.page = c.page[:0]
	start := uint64(c.in) - uint64(len(data)) // in the original file
	delta := start - s.Offset
	if delta != 0 && isZero(data) && !c.noted(start, uint64(len(data))) {
		c.gap += int64(len(data))
		return nil
	}
	if delta == 0 || c.gap >= minGap && c.room() {
		if err := c.startPiece(s, delta); err != nil {
			return err
		}
	} else if c.gap > 0 {
		if err := c.emitZeroes(c.gap); err != nil {
			return err
		}
	}
	c.gap = 0
	err := c.emit(data)
	piece := &c.pieces[len(c.pieces)-1]
	piece.Filesz = uint64(c.end) - piece.Offset
	return err
}

// startPiece begins a segment of the compact file, at delta in s. It covers s
// to its end until the next piece takes over from there.
func (c *compactor) startPiece(s progHeader, delta uint64) error {
	if delta != 0 {
		last := &c.pieces[len(c.pieces)-1]
		last.Memsz = s.Paddr + delta - last.Paddr
	}
	if err := c.emitZeroes(int64((s.Paddr + delta - uint64(c.end)) % pageSize)); err != nil {
		return err
	}
	c.pieces = append(c.pieces, progHeader{Type: s.Type, Flags: s.Flags, Offset: uint64(c.end),
		Vaddr: s.Vaddr + delta, Paddr: s.Paddr + delta, Memsz: s.Memsz - delta, Align: pageSize})
	return nil
}

// room says whether one more piece leaves enough headers for what must have one.
func (c *compactor) room() bool {
	return len(c.pieces)+1+len(c.segments)-c.current-1+len(c.others) <= maxSegments
}

// noted says whether bytes of another program header are among n at offset off.
func (c *compactor) noted(off, n uint64) bool {
	return slices.ContainsFunc(c.others, func(o progHeader) bool {
		return o.Filesz > 0 && o.Offset < off+n && off < o.Offset+o.Filesz
	})
}

// emit appends to the file.
func (c *compactor) emit(p []byte) error {
	for len(p) > 0 {
		n := copy(c.buf[len(c.buf):cap(c.buf)], p)
		c.buf, p, c.end = c.buf[:len(c.buf)+n], p[n:], c.end+int64(n)
		if len(c.buf) == cap(c.buf) {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *compactor) emitZeroes(n int64) error {
	var zero [pageSize]byte
	for n > 0 {
		k := min(n, pageSize)
		if err := c.emit(zero[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func (c *compactor) flush() error {
	_, err := c.f.WriteAt(c.buf, c.end-int64(len(c.buf)))
	c.buf = c.buf[:0]
	return err
}

// finish writes what is left and the headers, and returns the file's size.
func (c *compactor) finish() (int64, error) {
	if !c.planned {
		c.keep()
		if err := c.consume(c.head); err != nil {
			return 0, err
		}
	}
	if c.verbatim {
		return c.end, c.flush()
	}
	c.advance()
	if c.current < len(c.segments) {
		return 0, errShort
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	return c.end, c.writeHeaders()
}

func (c *compactor) writeHeaders() error {
	b := make([]byte, 0, pageSize)
	for _, p := range c.pieces {
		b = p.append(b)
	}
	for _, o := range c.others {
		b = c.moved(o).append(b)
	}
	count := len(b) / phdrSize
	if _, err := c.f.WriteAt(b, ehdrSize); err != nil {
		return err
	}
	le := binary.LittleEndian
	b = le.AppendUint64(b[:0], ehdrSize) // e_phoff
	b = le.AppendUint64(b, 0)            // e_shoff
	if _, err := c.f.WriteAt(b, ehdrPhoff); err != nil {
		return err
	}
	b = le.AppendUint16(b[:0], uint16(count)) // e_phnum
	b = le.AppendUint16(b, 0)                 // e_shentsize
	b = le.AppendUint16(b, 0)                 // e_shnum
	b = le.AppendUint16(b, 0)                 // e_shstrndx
	_, err := c.f.WriteAt(b, ehdrPhnum)
	return err
}

// moved returns a header that is not PT_LOAD with its offset in the compact
// file. Pages under it are never left out, so one piece has all its bytes.
func (c *compactor) moved(o progHeader) progHeader {
	if o.Filesz == 0 {
		o.Offset = 0
		return o
	}
	i := slices.IndexFunc(c.segments, func(s progHeader) bool { return within(o, s) })
	s := c.segments[i]
	paddr := s.Paddr + (o.Offset - s.Offset)
	for _, p := range c.pieces {
		if p.Filesz > 0 && paddr >= p.Paddr && paddr-p.Paddr < p.Filesz {
			o.Offset = p.Offset + (paddr - p.Paddr)
			break
		}
	}
	return o
}

func isZero(p []byte) bool {
	var zero [pageSize]byte
	return bytes.Equal(p, zero[:len(p)])
}
