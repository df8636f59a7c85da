package main

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTypeaheadKeepsAll(t *testing.T) {
	r, w := pipeEnds(t).streams(t)
	a := newTypeahead(r)
	want := bytes.Repeat([]byte("0123456789abcdef"), 2*typeaheadMax/16)
	done := make(chan error, 1)
	go func() {
		_, err := w.Write(want)
		done <- err
	}()
	got := make([]byte, len(want))
	_, err := io.ReadFull(a, got)
	require.NoError(t, err)
	require.NoError(t, <-done)
	assert.Equal(t, want, got)
	assert.LessOrEqual(t, a.buf.Cap(), typeaheadKeep)
	a.stop()
	_, err = a.Read(got)
	assert.Equal(t, io.EOF, err)
}

// TestTypeaheadBound: what nobody takes stops the terminal, and stop ends even that.
func TestTypeaheadBound(t *testing.T) {
	r, w := pipeEnds(t).streams(t)
	a := newTypeahead(r)
	go func() { _, _ = a.Read(make([]byte, 1)) }()
	require.NoError(t, w.SetWriteDeadline(time.Now().Add(time.Second)))
	_, err := w.Write(make([]byte, 4*typeaheadMax))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	a.mu.Lock()
	assert.GreaterOrEqual(t, a.buf.Len(), typeaheadMax)
	assert.Less(t, a.buf.Len(), typeaheadMax+4096)
	a.mu.Unlock()
	a.stop()
}

func TestTypeaheadDeadline(t *testing.T) {
	r, w := pipeEnds(t).streams(t)
	a := newTypeahead(r)
	defer a.stop()
	p := make([]byte, 10)
	for _, wait := range []time.Duration{-time.Second, 0, 10 * time.Millisecond} {
		require.NoError(t, a.SetReadDeadline(time.Now().Add(wait)))
		_, err := a.Read(p)
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	_, err := w.Write([]byte("kept"))
	require.NoError(t, err)
	require.NoError(t, a.SetReadDeadline(time.Time{}))
	n, err := a.Read(p)
	require.NoError(t, err)
	assert.Equal(t, "kept", string(p[:n]))
}

func TestTypeaheadEnd(t *testing.T) {
	a := newTypeahead(&pieces{[]string{"ab", "c"}})
	got, err := io.ReadAll(a)
	require.NoError(t, err)
	assert.Equal(t, "abc", string(got))
	a.stop()
	unread := newTypeahead(&pieces{[]string{"x"}})
	unread.stop()
	_, err = unread.Read(make([]byte, 1))
	assert.Equal(t, io.EOF, err)
}
