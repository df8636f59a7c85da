package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// window is how many datagrams are under way at once, and patience how long one that
// does not come back is waited for.
const (
	window   = 8
	patience = 2 * time.Second
)

// datagrams sends count datagrams of size bytes, each with its number, and counts
// those that do not come back. One that comes back changed is an error.
func datagrams(address string, count, size int) (lost int, err error) {
	c, err := net.Dial("udp", address)
	if err != nil {
		return count, err
	}
	defer c.Close()
	size = max(size, 8)
	want := func(i int) []byte {
		b := bytes.Repeat([]byte{byte(i)}, size)
		binary.LittleEndian.PutUint64(b, uint64(i))
		return b
	}
	seen := make([]bool, count)
	back, sent := 0, 0
	buf := make([]byte, 64<<10)
	for lost+back < count {
		for ; sent < count && sent-back-lost < window; sent++ {
			if _, err := c.Write(want(sent)); err != nil {
				return lost, fmt.Errorf("send datagram %d: %w", sent, err)
			}
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return lost, err
		}
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			lost = sent - back
			continue
		}
		if err != nil {
			return lost, fmt.Errorf("receive: %w", err)
		}
		i := -1
		if n == size {
			i = int(min(binary.LittleEndian.Uint64(buf), uint64(count)))
		}
		if i < 0 || i >= count || !bytes.Equal(buf[:n], want(i)) {
			return lost, errors.New("a datagram came back changed")
		}
		if seen[i] {
			return lost, fmt.Errorf("datagram %d came back twice", i)
		}
		seen[i] = true
		back++
	}
	return lost, nil
}
