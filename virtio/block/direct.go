package block

import (
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// bounceSize is the length of one bounce buffer, in bytes: a multiple of
	// every alignment that is accepted.
	bounceSize = 256 << 10
	// bounceCount bounds the bounce buffers of one file: 1 MiB in all.
	bounceCount = 4
	// maxDirectAlign is the largest alignment that is accepted, in bytes.
	maxDirectAlign = 64 << 10
)

// direct is what O_DIRECT asks for and how the rest is carried: offsets and
// lengths are multiples of block, addresses multiples of address. What does
// not fit goes through a bounce buffer.
type direct struct {
	block, address int // powers of two, in bytes

	// tokens bounds the buffers, free keeps those not in use.
	tokens chan struct{}
	free   chan []byte

	// Whoever writes part of a block writes all of it, as it was read before;
	// nobody may change the rest of the block between the two.
	partial sync.RWMutex
}

func newDirect(block, address int) *direct {
	return &direct{block: block, address: address,
		tokens: make(chan struct{}, bounceCount), free: make(chan []byte, bounceCount)}
}

// enter and leave frame a change of the file that may run beside others, but
// not beside a write of part of a block. Without O_DIRECT d is nil and both do
// nothing.
func (d *direct) enter() {
	if d != nil {
		d.partial.RLock()
	}
}

func (d *direct) leave() {
	if d != nil {
		d.partial.RUnlock()
	}
}

func (d *direct) buffer() []byte {
	d.tokens <- struct{}{}
	select {
	case b := <-d.free:
		return b
	default:
		return alignedBytes(bounceSize, max(d.address, d.block))
	}
}

func (d *direct) put(b []byte) {
	d.free <- b
	<-d.tokens
}

// fits reports whether O_DIRECT takes bufs at off as they are.
func (d *direct) fits(bufs [][]byte, off int64) bool {
	if off&int64(d.block-1) != 0 {
		return false
	}
	for _, b := range bufs {
		if len(b)&(d.block-1) != 0 || len(b) != 0 && misaligned(b, d.address) {
			return false
		}
	}
	return true
}

func (f *File) transferDirect(trap uintptr, bufs [][]byte, off, total int64) (int64, error) {
	done := int64(0)
	if f.direct.fits(bufs, off) {
		if trap == unix.SYS_PWRITEV {
			f.direct.enter()
		}
		n, err := f.loop(trap, bufs, off, 0, total)
		if trap == unix.SYS_PWRITEV {
			f.direct.leave()
		}
		// EINVAL: a short transfer left the alignment, or the device wants more
		// of a buffer than was said.
		if err != unix.EINVAL {
			return n, err
		}
		done = n
	}
	bounce := f.direct.buffer()
	defer f.direct.put(bounce)
	v := f.vecs.get()
	defer f.vecs.put(v)
	for done < total {
		at := off + done
		start := at &^ int64(f.direct.block-1)
		piece := min(total-done, start+bounceSize-at)
		*v = subVec((*v)[:0], bufs, done, piece)
		var err error
		var n int64
		if trap == unix.SYS_PREADV {
			n, err = f.readBounced(bounce, *v, at, piece)
		} else {
			n, err = piece, f.writeBounced(bounce, *v, at, piece)
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// readBounced reads the n bytes at off, which are in one bounce buffer's
// reach.
func (f *File) readBounced(bounce []byte, bufs [][]byte, off, n int64) (int64, error) {
	block := int64(f.direct.block)
	start := off &^ (block - 1)
	end := (off + n + block - 1) &^ (block - 1)
	got, err := f.readBlocks(bounce[:end-start], start)
	if err != nil {
		return 0, err
	}
	if start+got < off+n {
		return 0, f.ended(unix.SYS_PREADV, start+got)
	}
	return int64(scatter(bufs, bounce[off-start:off-start+n])), nil
}

// readBlocks fills p, which is aligned, or as much of it as the file has.
func (f *File) readBlocks(p []byte, off int64) (int64, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return int64(done), err
		}
		done += n
		// The end of a file is where a direct read stops short of a block.
		if n == 0 || n%f.direct.block != 0 {
			break
		}
	}
	return int64(done), nil
}

// writeBounced writes the n bytes of bufs at off, which are in one bounce
// buffer's reach.
func (f *File) writeBounced(bounce []byte, bufs [][]byte, off, n int64) error {
	block := int64(f.direct.block)
	start := off &^ (block - 1)
	end := (off + n + block - 1) &^ (block - 1)
	p := bounce[:end-start]
	if start == off && end == off+n {
		f.direct.partial.RLock()
		defer f.direct.partial.RUnlock()
	} else {
		f.direct.partial.Lock()
		defer f.direct.partial.Unlock()
		if err := f.readEdges(p, start, off, off+n, end); err != nil {
			return err
		}
	}
	gather(p[off-start:off-start+n], bufs)
	for done := 0; done < len(p); {
		n, err := unix.Pwrite(f.fd, p[done:], start+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return f.ended(unix.SYS_PWRITEV, start)
		}
		done += n
	}
	return nil
}

// readEdges reads the first block of p if off is inside it and the last one if
// to is: p lies from start to end in the file.
func (f *File) readEdges(p []byte, start, off, to, end int64) error {
	block := int64(f.direct.block)
	first, last := start, end-block
	if start != off || first == last {
		if err := f.readBlock(p[:block], first); err != nil {
			return err
		}
	}
	if to != end && first != last {
		return f.readBlock(p[last-start:], last)
	}
	return nil
}

// readBlock fills p, which is one block.
func (f *File) readBlock(p []byte, off int64) error {
	n, err := f.readBlocks(p, off)
	if err == nil && n < int64(len(p)) {
		err = f.ended(unix.SYS_PREADV, off+n)
	}
	return err
}

// directAlignment finds what O_DIRECT asks for on fd: from statx (Linux 6.1
// and file systems that say it), else by trying.
func directAlignment(fd int) (block, address int, ok bool) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		block, address = int(st.Dio_offset_align), int(st.Dio_mem_align)
		return max(block, SectorSize), max(address, 1), goodAlign(block) && goodAlign(address)
	}
	// Lengths are held to the same rule as offsets; offset 0 is inside.
	p := alignedBytes(maxDirectAlign, maxDirectAlign)
	for n := SectorSize; n <= maxDirectAlign; n *= 2 {
		if _, err := unix.Pread(fd, p[:n], 0); err == nil {
			break
		} else if err != unix.EINVAL || n == maxDirectAlign {
			return 0, 0, false
		}
		block = 2 * n
	}
	block = max(block, SectorSize)
	return block, max(block, 4096), true
}

func goodAlign(n int) bool { return n > 0 && n <= maxDirectAlign && n&(n-1) == 0 }
