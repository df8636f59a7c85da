package stream

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestExchanges(t *testing.T) {
	l, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = Serve(c)
			}()
		}
	}()
	dial := func() (io.ReadWriteCloser, error) { return net.Dial("tcp", l.Addr().String()) }
	for _, verb := range []string{"send", "recv", "echo"} {
		for _, n := range []int64{0, 1, blockSize - 1, blockSize, blockSize + 1, 3<<20 + 17} {
			c, err := dial()
			require.NoError(t, err)
			assert.NoError(t, Client(c, verb, n), "%s %d", verb, n)
			c.Close()
		}
	}
	for _, verb := range []string{"sink", "source", "turns"} {
		c, err := dial()
		require.NoError(t, err)
		assert.NoError(t, Client(c, verb, 1000), verb)
		c.Close()
	}
	good, err := Many(100, dial, "echo", 1000)
	assert.NoError(t, err)
	assert.Equal(t, 100, good)
	c, err := dial()
	require.NoError(t, err)
	defer c.Close()
	assert.Error(t, Client(c, "nonsense", 1))
}

// TestShows: data that was changed on its way.
func TestShows(t *testing.T) {
	const n = 3*blockSize + 5
	var sent bytes.Buffer
	require.NoError(t, Send(&sent, n))
	whole := sent.Bytes()
	require.NoError(t, Receive(bytes.NewReader(whole), n))
	change := func(f func(b []byte) []byte) error {
		return Receive(bytes.NewReader(f(bytes.Clone(whole))), n)
	}
	assert.ErrorIs(t, change(func(b []byte) []byte { b[70_000] ^= 1; return b }), ErrBad)
	assert.ErrorIs(t, change(func(b []byte) []byte { return append(b[:5], append(b[6:], 0)...) }), ErrBad)
	assert.ErrorIs(t, change(func(b []byte) []byte {
		copy(b, whole[blockSize:2*blockSize])
		copy(b[blockSize:], whole[:blockSize])
		return b
	}), ErrBad, "blocks that changed places")
	assert.ErrorIs(t, change(func(b []byte) []byte { return b[:len(b)-1] }), io.ErrUnexpectedEOF)
}
