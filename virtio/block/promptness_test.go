package block

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestWaitless: only a read that says it can't wait is hidden from the runtime's
// scheduler, so that nothing else ever waits for storage with it.
func TestWaitless(t *testing.T) {
	for _, c := range []struct {
		name     string
		inMemory bool
		trap     uintptr
		want     bool
	}{
		{"read of a file that storage has", false, unix.SYS_PREADV2, true},
		{"read of a file in memory", true, unix.SYS_PREADV2, false},
		{"write to a file that storage has", false, unix.SYS_PWRITEV2, false},
		{"write to a file in memory", true, unix.SYS_PWRITEV2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := promptness{inMemory: c.inMemory}
			assert.Equal(t, c.want, waitless(c.trap, p.flags()))
		})
	}
}

// TestPromptnessOfCacheModes: a write that has to be stable is never tried on storage,
// where RWF_NOWAIT does not wait for it; around the page cache nothing is.
func TestPromptnessOfCacheModes(t *testing.T) {
	for _, c := range []struct {
		mode        CacheMode
		read, write bool // may be tried
	}{
		{Writeback, true, true},
		{Writethrough, true, false},
		{NoCache, false, false},
	} {
		t.Run(c.mode.String(), func(t *testing.T) {
			path := newFile(t, 8192)
			f, err := openFile(path, false, c.mode, setLock)
			if c.mode == NoCache && errors.Is(err, ErrImage) {
				t.Skip("no O_DIRECT here: ", err)
			}
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, f.Close()) })
			if f.prompt.inMemory {
				t.Skip("the directory for tests is in memory")
			}
			assert.Equal(t, !c.read, f.prompt.noRead.Load())
			assert.Equal(t, !c.write, f.prompt.noWrite.Load())
			data := bytes.Repeat([]byte{7}, 512)
			if !c.write {
				assert.False(t, f.TryWritevAt([][]byte{data}, 0))
				now, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.True(t, bytes.Equal(make([]byte, 8192), now), "nothing was written")
			}
			if !c.read {
				assert.False(t, f.TryReadvAt([][]byte{data}, 0))
			}
		})
	}
}
