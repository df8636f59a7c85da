package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

const (
	// window is how many datagrams are under way at once.
	window = 8
	// Patience is how long Datagrams waits for one to come back before it goes on
	// without those that are under way, and at the end for the last ones.
	Patience = 2 * time.Second
)

// Datagrams sends count datagrams of size bytes, each with its number, to who sends them
// back, and returns how many have not come back at the end. One that comes late is not
// lost. One that comes back changed, or twice, is an error.
func Datagrams(c net.Conn, count, size int, patience time.Duration) (lost int, err error) {
	size = max(size, 8)
	want := func(i int) []byte {
		b := bytes.Repeat([]byte{byte(i)}, size)
		binary.LittleEndian.PutUint64(b, uint64(i))
		return b
	}
	seen := make([]bool, count)
	back, sent := 0, 0
	late, until := 0, 0 // of the datagrams before until, so many are not waited for
	buf := make([]byte, 64<<10)
	for back < count {
		for ; sent < count && sent-back-late < window; sent++ {
			if _, err := c.Write(want(sent)); err != nil {
				return count - back, fmt.Errorf("stream: send datagram %d: %w", sent, err)
			}
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return count - back, err
		}
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if sent == count {
				break
			}
			late, until = sent-back, sent
			continue
		}
		if err != nil {
			return count - back, fmt.Errorf("stream: receive a datagram: %w", err)
		}
		i := -1
		if n == size {
			i = int(min(binary.LittleEndian.Uint64(buf), uint64(count)))
		}
		if i < 0 || i >= count || !bytes.Equal(buf[:n], want(i)) {
			return count - back, fmt.Errorf("%w: a datagram came back changed", ErrBad)
		}
		if seen[i] {
			return count - back, fmt.Errorf("%w: datagram %d came back twice", ErrBad, i)
		}
		seen[i] = true
		back++
		if i < until {
			late--
		}
	}
	return count - back, nil
}

// EchoDatagrams sends each datagram back to where it came from, until c is closed.
func EchoDatagrams(c net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		switch {
		case err == nil:
			_, _ = c.WriteTo(buf[:n], from)
		case errors.Is(err, net.ErrClosed):
			return
		}
	}
}
