package vsock

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestBuffer: bytes come out as they went in, however they are cut, up to the
// largest window at any offset; an empty buffer holds no memory.
func TestBuffer(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var pool chunkPool
	var b buffer
	var want []byte
	next := byte(0)
	for range 5000 {
		if n := rnd.IntN(MaxWindow + 1); b.n+n <= MaxWindow && rnd.IntN(2) == 0 {
			p := make([]byte, n)
			for i := range p {
				p[i], next = next, next*5+1
			}
			skip, cut := rnd.IntN(n+1), rnd.IntN(n+1)
			b.append(&pool, [][]byte{p[:cut], p[cut:]}, skip)
			want = append(want, p[skip:]...)
		}
		require.Equal(t, len(want), b.n)
		switch rnd.IntN(3) {
		case 0:
			p := make([]byte, rnd.IntN(3*chunkSize))
			n := b.read(&pool, p)
			require.Equal(t, min(len(p), len(want)), n)
			require.True(t, bytes.Equal(want[:n], p[:n]))
			want = want[n:]
		case 1:
			var room [maxChunks][]byte
			vec := b.vec(room[: 0 : 1+rnd.IntN(maxChunks)])
			all := bytes.Join(vec, nil)
			require.True(t, bytes.HasPrefix(want, all))
			if len(vec) == maxChunks {
				require.Len(t, all, len(want))
			}
			b.discard(&pool, len(all))
			want = want[len(all):]
		}
		chunks := 0
		for _, c := range b.chunks {
			if c != nil {
				chunks++
			}
		}
		require.LessOrEqual(t, chunks, (b.n+chunkSize-1)/chunkSize+1)
		if b.n == 0 {
			require.Zero(t, chunks)
		}
	}
	b.discard(&pool, b.n)
	assert.Equal(t, [maxChunks]*chunk{}, b.chunks)
}

// TestWindows: the bound that windowOf promises.
func TestWindows(t *testing.T) {
	sum := func(n int) (total int) {
		for i := range n {
			w := int(windowOf(i + 1))
			require.LessOrEqual(t, w, MaxWindow)
			total += w
		}
		return total
	}
	assert.Equal(t, 88<<20, sum(1024))
	assert.Equal(t, 136<<20, sum(DefaultMaxConns))
}

// TestResetList: what waits keeps its order, within a bound, and moves no more than
// it must.
func TestResetList(t *testing.T) {
	l := resetList{most: 100}
	in, out := uint32(0), uint32(0)
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 10_000 {
		if rnd.IntN(2) == 0 {
			ok := l.add(reset{port: in})
			require.Equal(t, in-out < 100, ok)
			if ok {
				in++
			}
		} else if l.len() > 0 {
			require.Equal(t, out, l.peek().port)
			l.pop()
			out++
		}
		require.EqualValues(t, in-out, l.len())
		require.LessOrEqual(t, cap(l.list), 512)
	}
	assert.EqualValues(t, in-out, l.clear())
	assert.Zero(t, l.len())
}
