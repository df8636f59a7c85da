package block

import (
	"math"
	"sync"
)

// vecLen is the sum of the buffers' lengths, in bytes.
func vecLen(bufs [][]byte) int64 {
	var n int64
	for _, b := range bufs {
		if n += int64(len(b)); n < 0 {
			return math.MaxInt64
		}
	}
	return n
}

// subVec appends to dst the parts of bufs that make up n bytes from byte skip
// on.
func subVec(dst, bufs [][]byte, skip, n int64) [][]byte {
	for _, b := range bufs {
		if n == 0 {
			break
		}
		if skip >= int64(len(b)) {
			skip -= int64(len(b))
			continue
		}
		b = b[skip:]
		skip = 0
		if int64(len(b)) > n {
			b = b[:n]
		}
		n -= int64(len(b))
		dst = append(dst, b)
	}
	return dst
}

// vecPool keeps scratch lists of buffers.
type vecPool struct{ p sync.Pool }

// get returns an empty list that put takes back.
func (p *vecPool) get() *[][]byte {
	if v, ok := p.p.Get().(*[][]byte); ok {
		return v
	}
	s := make([][]byte, 0, 128)
	return &s
}

func (p *vecPool) put(v *[][]byte) {
	clear((*v)[:cap(*v)])
	*v = (*v)[:0]
	p.p.Put(v)
}

// gather copies the bytes of bufs into p and returns how many.
func gather(p []byte, bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += copy(p[n:], b)
	}
	return n
}

// scatter copies p into bufs and returns how many bytes.
func scatter(bufs [][]byte, p []byte) int {
	n := 0
	for _, b := range bufs {
		n += copy(b, p[n:])
	}
	return n
}

// zeroes is written where the host can't be told to make zeroes. Nobody
// writes to it.
var zeroes [64 << 10]byte

// zeroPieces is how often zeroes goes into one write: 1 MiB.
const zeroPieces = 16

// writeZeroBuffers writes n zeroes at off.
func writeZeroBuffers(img Image, pool *vecPool, off, n int64) error {
	v := pool.get()
	defer pool.put(v)
	for n > 0 {
		*v = (*v)[:0]
		piece := int64(0)
		for len(*v) < zeroPieces && piece < n {
			k := min(n-piece, int64(len(zeroes)))
			*v = append(*v, zeroes[:k])
			piece += k
		}
		if _, err := WriteVec(img, *v, off); err != nil {
			return err
		}
		off += piece
		n -= piece
	}
	return nil
}
