package blocktest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio/block"
)

var errTest = errors.New("on purpose")

func TestFaulty(t *testing.T) {
	p := make([]byte, 1024)
	read := func(f *Faulty, off int64) func() (int, error) {
		return func() (int, error) { return f.ReadAt(p, off) }
	}
	for _, c := range []struct {
		name  string
		fault Fault
		off   int64
		write bool
		n     int
		err   error
	}{
		{"an error", Fault{Ops: Read, Err: errTest}, 0, false, 0, errTest},
		{"another operation", Fault{Ops: Write | Flush, Err: errTest}, 0, false, 1024, nil},
		{"below", Fault{Ops: All, From: 4096, Err: errTest}, 3072, false, 1024, nil},
		{"touched", Fault{Ops: All, From: 4096, To: 4097, Err: errTest}, 3584, false, 0, errTest},
		{"above", Fault{Ops: All, To: 4096, Err: errTest}, 4096, false, 1024, nil},
		{"short", Fault{Ops: Read, ShortOnly: true, Short: 100}, 0, false, 100, io.ErrUnexpectedEOF},
		{"an error after some", Fault{Ops: Write, Err: errTest, Short: 512}, 0, true, 512, errTest},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := NewFaulty(block.NewMemory(1 << 20))
			a := f.Add(c.fault)
			call := read(f, c.off)
			if c.write {
				call = func() (int, error) { return f.WriteAt(bytes.Repeat([]byte{1}, 1024), c.off) }
			}
			n, err := call()
			assert.Equal(t, c.n, n)
			assert.ErrorIs(t, err, c.err)
			if c.err != nil {
				assert.Equal(t, 1, a.Hits())
			}
			f.Clear()
			_, err = f.ReadAt(p, c.off)
			require.NoError(t, err)
			if c.write {
				assert.Equal(t, c.n, bytes.Count(p, []byte{1}))
			}
		})
	}
}

func TestFaultyTimes(t *testing.T) {
	f := NewFaulty(block.NewMemory(1 << 20))
	f.Add(Fault{Ops: All, Err: errTest, Times: 2})
	assert.ErrorIs(t, f.Flush(), errTest)
	assert.ErrorIs(t, f.Discard(0, 512), errTest)
	assert.NoError(t, f.WriteZeroes(0, 512, true))
	_, err := f.Refresh()
	assert.NoError(t, err)
}

func TestFaultyBlocks(t *testing.T) {
	m := block.NewMemory(1 << 20)
	f := NewFaulty(m)
	a := f.Add(Fault{Ops: Write, Block: true})
	done := make(chan error)
	go func() {
		_, err := f.WriteAt([]byte{1}, 0)
		done <- err
	}()
	<-a.Arrived()
	p := []byte{9}
	_, err := f.ReadAt(p, 0)
	require.NoError(t, err, "others go on")
	assert.Zero(t, p[0])
	a.Release()
	assert.NoError(t, <-done)
	_, err = m.ReadAt(p, 0)
	require.NoError(t, err)
	assert.EqualValues(t, 1, p[0])
	require.NoError(t, f.Close())
}

func TestHasty(t *testing.T) {
	m := block.NewMemory(1 << 20)
	f := NewFaulty(m)
	h := NewHasty(f, 7)
	var moved [4]int // nothing, a part, all without success, with success
	var firstTime []bool
	for i := range 200 {
		p := bytes.Repeat([]byte{byte(i + 1)}, 1024)
		require.NoError(t, m.WriteZeroes(0, 1024, true))
		done := h.TryWritevAt([][]byte{p[:100], p[100:]}, 0)
		firstTime = append(firstTime, done)
		got := make([]byte, 1024)
		_, err := m.ReadAt(got, 0)
		require.NoError(t, err)
		n := bytes.Count(got, p[:1])
		assert.Equal(t, n, len(bytes.TrimRight(got, "\x00")), "from the first byte on")
		switch {
		case done:
			require.Equal(t, 1024, n)
			moved[3]++
		case n == 0:
			moved[0]++
		case n < 1024:
			moved[1]++
		default:
			moved[2]++
		}
	}
	for what, n := range moved {
		assert.NotZero(t, n, what)
	}
	tried, done := h.Tried()
	assert.Equal(t, 200, tried)
	assert.Equal(t, moved[3], done)

	h.Seed(7)
	for i, want := range firstTime {
		// The same choices, for a read of what is all there.
		assert.Equal(t, want, h.TryReadvAt([][]byte{make([]byte, 1024)}, 0), i)
	}
	a := f.Add(Fault{Ops: Read, Block: true})
	for range 50 {
		assert.False(t, h.TryReadvAt([][]byte{make([]byte, 512)}, 0), "it would have to wait")
	}
	assert.Zero(t, a.Hits())
	f.Clear()
	for range 50 {
		assert.False(t, h.TryReadvAt([][]byte{make([]byte, 512)}, 1<<20), "past the end")
	}
}

// onlyReads is an image that can do nothing else.
type onlyReads struct{ *bytes.Reader }

func TestFaultyOverLittle(t *testing.T) {
	f := NewFaulty(onlyReads{bytes.NewReader(make([]byte, 512))})
	assert.False(t, block.CanWrite(f))
	_, err := f.WriteAt([]byte{1}, 0)
	assert.ErrorIs(t, err, block.ErrReadOnly)
	assert.ErrorIs(t, f.Discard(0, 512), errors.ErrUnsupported)
	assert.ErrorIs(t, f.WriteZeroes(0, 512, false), errors.ErrUnsupported)
	assert.NoError(t, f.Flush())
	n, err := f.Refresh()
	assert.NoError(t, err)
	assert.EqualValues(t, 512, n)
	assert.NoError(t, f.Close())
}
