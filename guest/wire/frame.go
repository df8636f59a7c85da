package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// MaxFrame is the most that a frame's body has, in bytes: arguments and environment
// of a program are bounded by 2 MiB in Linux, and JSON may write a byte as six.
const MaxFrame = 16 << 20

const frameHeader = 5

// ErrFrame reports bytes that are not what this package speaks.
var ErrFrame = errors.New("wire: malformed")

// Writer writes frames. Its methods may be called from any goroutine.
type Writer struct {
	mu sync.Mutex
	w  io.Writer
}

// NewWriter returns a Writer on the control connection w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write sends one frame with v as its body, by one Write.
func (w *Writer) Write(k Kind, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("%w: a frame of %d bytes is too long: at most %d", ErrFrame, len(body), MaxFrame)
	}
	b := make([]byte, frameHeader, frameHeader+len(body))
	binary.LittleEndian.PutUint32(b, uint32(len(body)))
	b[4] = byte(k)
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err = w.w.Write(append(b, body...))
	return err
}

// Frame is one frame as it came.
type Frame struct {
	Kind Kind
	body []byte
}

// Decode reads the body into v.
func (f Frame) Decode(v any) error {
	if err := json.Unmarshal(f.body, v); err != nil {
		return fmt.Errorf("%w: a frame of kind %d: %w", ErrFrame, f.Kind, err)
	}
	return nil
}

// ReadFrame reads one frame. It fails with io.EOF at the end of the connection
// between two frames.
func ReadFrame(r io.Reader) (Frame, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, err
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n > MaxFrame {
		return Frame{}, fmt.Errorf("%w: a frame of %d bytes: at most %d", ErrFrame, n, MaxFrame)
	}
	// What is not sent is not allocated either.
	body, err := readUpTo(r, int(n))
	if err != nil {
		return Frame{}, err
	}
	return Frame{Kind: Kind(h[4]), body: body}, nil
}

// readUpTo reads n bytes, and makes room for them as they come.
func readUpTo(r io.Reader, n int) ([]byte, error) {
	const step = 64 << 10
	var b []byte
	for len(b) < n {
		chunk := make([]byte, min(n-len(b), max(step, len(b))))
		m, err := io.ReadFull(r, chunk)
		b = append(b, chunk[:m]...)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}
