package nested

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestFrames(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), frameMax/10*2)
	var b bytes.Buffer
	w := &frameWriter{w: &b}
	require.NoError(t, w.send(frameStdout, []byte("hello")))
	require.NoError(t, w.send(frameAlive, nil))
	require.NoError(t, w.send(frameData, long))

	kind, p, err := readFrame(&b)
	require.NoError(t, err)
	assert.Equal(t, frameStdout, kind)
	assert.Equal(t, "hello", string(p))
	kind, p, err = readFrame(&b)
	require.NoError(t, err)
	assert.Equal(t, frameAlive, kind)
	assert.Empty(t, p)
	var got []byte
	for len(got) < len(long) {
		kind, p, err = readFrame(&b)
		require.NoError(t, err)
		assert.Equal(t, frameData, kind)
		assert.LessOrEqual(t, len(p), frameMax)
		got = append(got, p...)
	}
	assert.Equal(t, long, got)
	_, _, err = readFrame(&b)
	assert.ErrorIs(t, err, io.EOF)
}

func TestDamagedFrames(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, (&frameWriter{w: &b}).send(frameStdout, []byte("hello")))
	good := b.Bytes()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		_, _, err := readFrame(bytes.NewReader(bad))
		assert.Error(t, err, "byte %d", i)
	}
	for n := 1; n < len(good); n++ {
		_, _, err := readFrame(bytes.NewReader(good[:n]))
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "%d bytes", n)
	}
	_, _, err := readFrame(strings.NewReader("\xa5\x5ao\xff\xff\xff\x7f\x00\x00\x00\x00"))
	assert.ErrorIs(t, err, errFrame, "a length beyond the bound")
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	w := &frameWriter{w: &b}
	_ = w.send(frameExit, encode(exitInfo{Code: 1}))
	_ = w.send(frameFile, encode(fileHead{Path: "/a", Size: 3}))
	f.Add(b.Bytes())
	f.Add([]byte("\xa5\x5a"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			kind, p, err := readFrame(r)
			if err != nil {
				return
			}
			var out bytes.Buffer
			if err := (&frameWriter{w: &out}).send(kind, p); err != nil {
				t.Fatal(err)
			}
			if end := len(in) - r.Len(); !bytes.HasSuffix(in[:end], out.Bytes()) {
				t.Fatalf("frame %c of %d bytes does not encode to what was read", kind, len(p))
			}
		}
	})
}
