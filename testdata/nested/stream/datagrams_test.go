package stream

import (
	"encoding/binary"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// answering is a server's socket and who asks there. answer gets each datagram and its
// number and returns what is sent for it, one after the other.
func answering(t *testing.T, answer func(i int, b []byte) [][]byte) net.Conn {
	t.Helper()
	s, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	c, err := net.Dial("udp", s.LocalAddr().String())
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, from, err := s.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, b := range answer(int(binary.LittleEndian.Uint64(buf)), slices.Clone(buf[:n])) {
				_, _ = s.WriteTo(b, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); s.Close(); <-done })
	return c
}

func TestDatagrams(t *testing.T) {
	const count = 100
	var held [][]byte
	// hold keeps what has one of the first numbers until that of another has come.
	hold := func(first, until int) func(int, []byte) [][]byte {
		return func(i int, b []byte) [][]byte {
			if i < first {
				held = append(held, b)
				return nil
			}
			if i == until {
				all := append(held, b)
				held = nil
				return all
			}
			return [][]byte{b}
		}
	}
	for _, tc := range []struct {
		name   string
		answer func(i int, b []byte) [][]byte
		lost   int
		err    string
	}{
		{"all come back", func(_ int, b []byte) [][]byte { return [][]byte{b} }, 0, ""},
		{"none does", func(int, []byte) [][]byte { return nil }, count, ""},
		{"some do not", func(i int, b []byte) [][]byte {
			if i%10 == 9 {
				return nil
			}
			return [][]byte{b}
		}, count / 10, ""},
		{"the last does not", func(i int, b []byte) [][]byte {
			if i == count-1 {
				return nil
			}
			return [][]byte{b}
		}, 1, ""},
		{"one comes late", hold(1, 50), 0, ""},
		{"a whole window comes after it was given up", hold(window, 2*window-1), 0, ""},
		{"two windows come at the very end", hold(2*window, count-1), 0, ""},
		{"what was late is lost after all", hold(window, count), window, ""},
		{"one comes twice", func(i int, b []byte) [][]byte {
			if i == 20 {
				return [][]byte{b, b}
			}
			return [][]byte{b}
		}, count - 21, "datagram 20 came back twice"},
		{"one is changed", func(i int, b []byte) [][]byte {
			if i == 20 {
				b[len(b)-1]++
			}
			return [][]byte{b}
		}, count - 20, "changed"},
		{"one is cut", func(i int, b []byte) [][]byte {
			if i == 20 {
				b = b[:len(b)-1]
			}
			return [][]byte{b}
		}, count - 20, "changed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			held = nil
			lost, err := Datagrams(answering(t, tc.answer), count, 100, 50*time.Millisecond)
			assert.Equal(t, tc.lost, lost)
			if tc.err == "" {
				assert.NoError(t, err)
				return
			}
			assert.ErrorIs(t, err, ErrBad)
			assert.ErrorContains(t, err, tc.err)
		})
	}
}

func TestEchoDatagrams(t *testing.T) {
	s, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		EchoDatagrams(s)
	}()
	for _, size := range []int{8, 1400, 8000} {
		c, err := net.Dial("udp", s.LocalAddr().String())
		require.NoError(t, err)
		lost, err := Datagrams(c, 50, size, Patience)
		assert.NoError(t, err)
		assert.Zero(t, lost)
		assert.NoError(t, c.Close())
	}
	assert.NoError(t, s.Close())
	<-done
}
