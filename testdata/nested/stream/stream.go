// Package stream is what guest tests send over connections: data that shows every
// byte lost, doubled or moved, with a checksum behind it. The test speaks it on one
// side of a machine's network or socket device; the program peer does in the guest.
//
// A client asks in one line, "VERB N\n" with a number of bytes, and the server does
// its part:
//
//	send N    the client sends N bytes and the checksum, the server answers "ok\n"
//	recv N    the server sends N bytes and the checksum
//	echo N    both: the server gives back what it gets, while it comes
//	sink N    the client sends N bytes of nothing, the server answers "ok\n"
//	source N  the server sends N bytes of nothing
//	turns N   N times one byte each way, one after the other
//
// The last three are for benchmarks: nothing is checked.
package stream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"strings"
)

// blockSize is what is sent in one write, in bytes.
const blockSize = 64 << 10

// MaxBytes bounds what a client may ask for.
const MaxBytes = 1 << 40

var table = crc64.MakeTable(crc64.ECMA)

// ErrBad reports data that is not what was sent.
var ErrBad = errors.New("stream: the data is not what was sent")

// Send writes n bytes and their checksum.
func Send(w io.Writer, n int64) error {
	block := make([]byte, blockSize)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(block)
	sum := crc64.New(table)
	for at := int64(0); at < n; at += blockSize {
		binary.LittleEndian.PutUint64(block, uint64(at)) // no two blocks are alike
		b := block[:min(blockSize, n-at)]
		_, _ = sum.Write(b)
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("stream: send at %d of %d: %w", at, n, err)
		}
	}
	_, err := w.Write(binary.LittleEndian.AppendUint64(nil, sum.Sum64()))
	return err
}

// Receive reads what Send writes.
func Receive(r io.Reader, n int64) error {
	sum := crc64.New(table)
	got, err := io.CopyBuffer(sum, onlyReader{io.LimitReader(r, n)}, make([]byte, blockSize))
	if err != nil {
		return fmt.Errorf("stream: receive at %d of %d: %w", got, n, err)
	}
	var want [8]byte
	if _, err := io.ReadFull(r, want[:]); err != nil {
		return fmt.Errorf("stream: receive the checksum behind %d of %d bytes: %w", got, n, err)
	}
	if binary.LittleEndian.Uint64(want[:]) != sum.Sum64() {
		return fmt.Errorf("%w: the checksum of %d bytes differs", ErrBad, got)
	}
	return nil
}

// onlyReader hides what else a reader can do, so that the buffer is used.
type onlyReader struct{ io.Reader }

// Client asks for one exchange and takes part in it.
func Client(c io.ReadWriter, verb string, n int64) error {
	if _, err := fmt.Fprintf(c, "%s %d\n", verb, n); err != nil {
		return fmt.Errorf("stream: ask for %s: %w", verb, err)
	}
	switch verb {
	case "send":
		if err := Send(c, n); err != nil {
			return err
		}
		return answered(c)
	case "recv":
		return Receive(c, n)
	case "echo":
		sent := make(chan error, 1)
		go func() { sent <- Send(c, n) }()
		if err := Receive(c, n); err != nil {
			return err
		}
		return <-sent
	case "sink":
		if err := nothing(c, n); err != nil {
			return err
		}
		return answered(c)
	case "source":
		_, err := io.CopyBuffer(onlyWriter{io.Discard}, io.LimitReader(c, n), make([]byte, blockSize))
		return err
	case "turns":
		var b [1]byte
		for range n {
			if _, err := c.Write(b[:]); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, b[:]); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("stream: there is no %q", verb)
}

// answered reads the server's word that all has come.
func answered(r io.Reader) error {
	var answer [3]byte
	if _, err := io.ReadFull(r, answer[:]); err != nil {
		return fmt.Errorf("stream: wait for the answer: %w", err)
	}
	if string(answer[:]) != "ok\n" {
		return fmt.Errorf("%w: the answer is %q", ErrBad, answer)
	}
	return nil
}

// nothing sends n bytes of no meaning.
func nothing(w io.Writer, n int64) error {
	block := make([]byte, blockSize)
	for n > 0 {
		k, err := w.Write(block[:min(n, blockSize)])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// Serve answers one client.
func Serve(c io.ReadWriter) error {
	r := bufio.NewReaderSize(c, 16)
	line, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("stream: read what is asked for: %w", err)
	}
	var verb string
	var n int64
	if _, err := fmt.Sscanf(strings.TrimSuffix(line, "\n"), "%s %d", &verb, &n); err != nil || n < 0 || n > MaxBytes {
		return fmt.Errorf("stream: %q asks for nothing", line)
	}
	switch verb {
	case "send":
		if err := Receive(r, n); err != nil {
			return err
		}
		_, err = io.WriteString(c, "ok\n")
		return err
	case "recv":
		return Send(c, n)
	case "sink":
		if _, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{io.LimitReader(r, n)}, make([]byte, blockSize)); err != nil {
			return err
		}
		_, err = io.WriteString(c, "ok\n")
		return err
	case "source":
		return nothing(c, n)
	case "turns":
		_, err = io.CopyBuffer(onlyWriter{c}, onlyReader{io.LimitReader(r, n)}, make([]byte, 16))
		return err
	case "echo":
		_, err = io.CopyBuffer(onlyWriter{c}, onlyReader{io.LimitReader(r, n+8)}, make([]byte, blockSize))
		return err
	}
	return fmt.Errorf("stream: %q asks for nothing", line)
}

type onlyWriter struct{ io.Writer }
