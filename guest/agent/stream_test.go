package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// bulk is what a test moves each way, in bytes.
func bulk() int64 {
	if testing.Short() {
		return 10 << 20
	}
	return 100 << 20
}

// noise is a reader of n bytes that don't repeat, with their sum.
func noise(n int64) (io.Reader, hash.Hash) {
	sum := sha256.New()
	return io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), n), sum), sum
}

func TestBulkIn(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	c := sh(t, g, "sha256sum")
	in, sum := noise(bulk())
	c.Stdin = in
	out, err := c.Output()
	require.NoError(t, err)
	assert.Equal(t, hex.EncodeToString(sum.Sum(nil))+"  -\n", string(out))
}

func TestBulkBothWays(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	c := sh(t, g, "exec cat")
	in, want := noise(bulk())
	got, count := sha256.New(), &counter{}
	c.Stdin, c.Stdout = in, io.MultiWriter(got, count)
	require.NoError(t, c.Run())
	assert.EqualValues(t, bulk(), count.n)
	assert.Equal(t, want.Sum(nil), got.Sum(nil))
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// What a command has written when it ends is all there, however much the pipe holds.
func TestLastWords(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	for _, n := range []string{"1", "4096", "4097", "65535", "65536", "65537", "200000"} {
		for range 5 {
			out, err := sh(t, g, "head -c "+n+" /dev/zero; sleep 1000 & exec head -c "+n+" /dev/zero").Output()
			require.NoError(t, err)
			assert.Equal(t, n, said(t, g, "printf "+n))
			var want int
			for _, d := range n {
				want = want*10 + int(d-'0')
			}
			assert.Len(t, out, 2*want)
			assert.Equal(t, 2*want, bytes.Count(out, []byte{0}))
		}
	}
}

func BenchmarkTrue(b *testing.B) {
	g, _ := newGuest(b, wire.Config{})
	_, err := g.Ready(bounded(b))
	require.NoError(b, err)
	for b.Loop() {
		c := g.CommandContext(bounded(b), "/bin/true")
		c.Stdout, c.Stderr, c.Stdin = io.Discard, &counter{}, bytes.NewReader(nil)
		require.NoError(b, c.Run())
	}
}

func BenchmarkBulk(b *testing.B) {
	g, _ := newGuest(b, wire.Config{})
	_, err := g.Ready(bounded(b))
	require.NoError(b, err)
	b.SetBytes(100 << 20)
	for b.Loop() {
		c := g.CommandContext(bounded(b), "/usr/bin/head", "-c", "104857600", "/dev/zero")
		n := &counter{}
		c.Stdout = n
		require.NoError(b, c.Run())
		require.EqualValues(b, 100<<20, n.n)
	}
}
