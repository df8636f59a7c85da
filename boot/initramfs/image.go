package initramfs

import (
	"errors"
	"fmt"
	"io"
	"sort"
)

// blockSize is what an image is padded to: what cpio pads to as well, and a
// multiple of the four bytes that a following archive needs.
const blockSize = 512

// ErrBody is a file that could not be read, or was shorter than its entry says,
// while an image was read.
var ErrBody = errors.New("the body cannot be read")

// Image is a finished archive. Its bytes never change as long as the bodies of
// the entries don't. All methods may be used concurrently if the bodies'
// ReadAt may.
type Image struct {
	segments []segment
	size     int64
}

// segment is either bytes in memory or a part of a file's body.
type segment struct {
	off  int64 // of its first byte in the image
	size int64
	mem  []byte
	body io.ReaderAt // nil for mem
	name string      // of the body's entry
}

// Image returns the archive as it is now, with its trailer, padded to a
// multiple of 512 bytes. The archive can be added to afterwards; that does not
// change the image.
func (a *Archive) Image() *Image {
	img := &Image{}
	var mem []byte
	for i := range a.entries {
		e := &a.entries[i]
		mem = appendHeader(mem, e.fields(uint32(i+1)), e.Name)
		switch {
		case e.Target != "":
			mem = append(mem, e.Target...)
			mem = appendPad(mem, int64(len(e.Target)))
		case e.Size > 0:
			img.push(segment{size: int64(len(mem)), mem: mem})
			img.push(segment{size: e.Size, body: e.Body, name: e.Name})
			mem = appendPad(nil, e.Size)
		}
	}
	mem = appendHeader(mem, [fieldCount]uint32{fieldNlink: 1}, trailerName)
	end := img.size + int64(len(mem))
	mem = append(mem, make([]byte, -end&(blockSize-1))...)
	img.push(segment{size: int64(len(mem)), mem: mem})
	return img
}

// fields are the header's numbers. Every entry has an inode number of its own,
// so that the kernel takes no two for hard links of each other.
func (e *Entry) fields(ino uint32) [fieldCount]uint32 {
	mode, _ := unixMode(e.Mode) // checked by Add
	f := [fieldCount]uint32{
		fieldIno:   ino,
		fieldMode:  mode,
		fieldUID:   e.UID,
		fieldGID:   e.GID,
		fieldNlink: 1,
	}
	switch mode & sIFMT {
	case sIFDIR:
		f[fieldNlink] = 2
	case sIFREG:
		f[fieldFileSize] = uint32(e.Size)
	case sIFLNK:
		f[fieldFileSize] = uint32(len(e.Target))
	case sIFBLK, sIFCHR:
		f[fieldRdevMajor], f[fieldRdevMinor] = e.Major, e.Minor
	}
	return f
}

func (img *Image) push(s segment) {
	if s.size == 0 {
		return
	}
	s.off = img.size
	img.size += s.size
	img.segments = append(img.segments, s)
}

// Size is the length of the image in bytes, a multiple of 512.
func (img *Image) Size() int64 { return img.size }

// ReadAt reads from the image, the parts of p that belong to files straight
// from their bodies. It implements [io.ReaderAt]; a body's failure wraps
// ErrBody.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("initramfs: read at the negative offset %d", off)
	}
	if off >= img.size {
		return 0, io.EOF
	}
	i := sort.Search(len(img.segments), func(i int) bool {
		return img.segments[i].off+img.segments[i].size > off
	})
	n := 0
	for ; i < len(img.segments) && n < len(p); i++ {
		s := &img.segments[i]
		at := off + int64(n) - s.off
		want := p[n:min(int64(len(p)), int64(n)+s.size-at)]
		if s.body == nil {
			n += copy(want, s.mem[at:])
			continue
		}
		m, err := s.body.ReadAt(want, at)
		n += m
		if m < len(want) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, fmt.Errorf("initramfs: %q: %w: %w", s.name, ErrBody, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteTo writes the whole image to w. It implements [io.WriterTo].
func (img *Image) WriteTo(w io.Writer) (int64, error) {
	var n int64
	for i := range img.segments {
		s := &img.segments[i]
		var m int64
		var err error
		if s.body == nil {
			var k int
			k, err = w.Write(s.mem)
			m = int64(k)
		} else {
			body := &bodyReader{r: io.NewSectionReader(s.body, 0, s.size)}
			m, err = io.Copy(w, body)
			switch {
			case body.err != nil:
				err = fmt.Errorf("initramfs: %q: %w: %w", s.name, ErrBody, body.err)
			case err == nil && m < s.size:
				err = fmt.Errorf("initramfs: %q: %w: %w", s.name, ErrBody, io.ErrUnexpectedEOF)
			}
		}
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// bodyReader remembers the error of its reader, so that it can be told from
// the writer's.
type bodyReader struct {
	r   io.Reader
	err error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}
