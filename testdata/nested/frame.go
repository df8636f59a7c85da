package nested

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// The channel between the emulated host's init and the process outside is its
// second serial port, raw, and carries frames both ways:
//
//	2 bytes  magic
//	1 byte   type
//	4 bytes  length of the payload, little endian
//	4 bytes  CRC-32 (IEEE) of type, length and payload, little endian
//	         payload
//
// The kernel's console has the first port to itself, so a kernel message never
// gets between, and a frame that does not match is an error and not a guess.

// frameType says what a frame's payload is.
type frameType byte

// Frames out of the emulated host.
const (
	frameReady  frameType = 'r' // JSON: ready
	frameStdout frameType = 'o' // bytes of the command's stdout
	frameStderr frameType = 'e' // bytes of the command's stderr
	frameAlive  frameType = 'h' // empty, every aliveEvery
	frameFile   frameType = 'f' // JSON: fileHead; its bytes follow
	frameData   frameType = 'd' // bytes of the file begun last
	frameExit   frameType = 'x' // JSON: exitInfo; the last frame
)

// Frames into the emulated host.
const (
	frameStdin frameType = 'i' // bytes for the command's stdin
	frameEOF   frameType = 'c' // the end of stdin
	frameQuit  frameType = 'q' // SIGQUIT for the command: a Go program dumps its goroutines
	frameTerm  frameType = 't' // SIGTERM for the command
)

const (
	frameHead = 11
	frameMax  = 64 << 10 // bytes of payload
)

var frameMagic = [2]byte{0xa5, 0x5a}

// errFrame says that the channel delivered something that is not a frame.
var errFrame = errors.New("nested: the channel to the emulated host is damaged")

// frameWriter writes whole frames; it is safe for concurrent use.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// send writes p as one frame or, where it is too long for one, as several.
func (f *frameWriter) send(t frameType, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), frameMax)
		f.buf = append(f.buf[:0], frameMagic[0], frameMagic[1], byte(t))
		f.buf = binary.LittleEndian.AppendUint32(f.buf, uint32(n))
		crc := crc32.ChecksumIEEE(f.buf[2:])
		crc = crc32.Update(crc, crc32.IEEETable, p[:n])
		f.buf = binary.LittleEndian.AppendUint32(f.buf, crc)
		f.buf = append(f.buf, p[:n]...)
		if _, err := f.w.Write(f.buf); err != nil {
			return fmt.Errorf("nested: write to the channel: %w", err)
		}
		p = p[n:]
	}
	return nil
}

// readFrame reads one frame. The payload is the caller's. At a clean end of
// the stream the error is io.EOF; inside a frame it is io.ErrUnexpectedEOF.
func readFrame(r io.Reader) (frameType, []byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	if [2]byte(head[:2]) != frameMagic {
		return 0, nil, fmt.Errorf("%w: %#x where a frame begins", errFrame, head[:2])
	}
	n := binary.LittleEndian.Uint32(head[3:])
	if n > frameMax {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes", errFrame, n)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	crc := crc32.Update(crc32.ChecksumIEEE(head[2:7]), crc32.IEEETable, p)
	if crc != binary.LittleEndian.Uint32(head[7:]) {
		return 0, nil, fmt.Errorf("%w: a frame's checksum is wrong", errFrame)
	}
	return frameType(head[2]), p, nil
}

// ready is what init reports once the emulated host is set up.
type ready struct {
	Kernel   string  `json:"kernel"`
	Uptime   float64 `json:"uptime"` // seconds since the kernel began, as the kernel counts
	Problems []string
}

// fileHead announces a file.
type fileHead struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"`
	Size int64  `json:"size"`
}

// exitInfo says how the command ended. Signal is 0 unless a signal ended it;
// Err is set when init could not run it at all.
type exitInfo struct {
	Code   int    `json:"code"`
	Signal int    `json:"signal,omitempty"`
	Err    string `json:"err,omitempty"`
}
