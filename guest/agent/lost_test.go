package agent

import (
	"bytes"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
)

// The host hears of output that does not get to it.
func TestOutputIsLost(t *testing.T) {
	g, _ := newGuest(t, wire.Config{Port: lossy})
	out, err := sh(t, g, "echo fine").Output()
	require.NoError(t, err)
	assert.Equal(t, "fine\n", string(out))
	const much = "trap '' PIPE; dd if=/dev/zero bs=60000 count=1 2>/dev/null; while echo x; do :; done 2>/dev/null; exit "
	_, err = sh(t, g, much+"0").Output()
	require.EqualError(t, err, "stdout: cut short: in the guest: message too long")
	require.ErrorIs(t, err, remote.ErrCut)
	_, err = sh(t, g, much+"3").Output()
	require.EqualError(t, err, "exit status 3; stdout: cut short: in the guest: message too long")
}

// A connection that fails is told of, one that is closed is not. The command's next write
// fails in either case.
func TestConnectionFails(t *testing.T) {
	full := func(t *testing.T) *os.File {
		f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		require.NoError(t, err)
		return f
	}
	closed := func(t *testing.T) *os.File {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(p[1]))
		return os.NewFile(uintptr(p[0]), "connection")
	}
	for name, c := range map[string]struct {
		to    func(t *testing.T) *os.File
		ended bool // before anything was copied
		want  *wire.Lost
	}{
		"full":                {full, false, &wire.Lost{Stream: 2, What: "no space left on device"}},
		"full at the end":     {full, true, &wire.Lost{Stream: 2, What: "no space left on device"}},
		"not wanted":          {closed, false, nil},
		"not wanted, the end": {closed, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var f files
			require.NoError(t, f.pipe(2))
			from, theirs := f.ours[2], os.NewFile(uintptr(f.child[2]), "pipe")
			defer theirs.Close()
			to := c.to(t)
			defer to.Close()
			if c.ended {
				_, err := theirs.WriteString("last words")
				require.NoError(t, err)
				require.NoError(t, from.SetReadDeadline(past))
			}
			o := newOutput(from, to, 2)
			if !c.ended {
				_, err := theirs.WriteString("words")
				require.NoError(t, err)
			}
			<-o.done
			assert.Equal(t, c.want, (&copiers{outputs: []*output{o}}).lost())
			if !c.ended {
				_, err := theirs.WriteString("more")
				require.ErrorIs(t, err, unix.EPIPE)
			}
		})
	}
}

// scarce is a connection for which there is memory for packets of some size, at times.
type scarce struct {
	bytes.Buffer
	err   error
	most  int           // bytes at once
	after time.Duration // nothing goes before
	began time.Time
}

func (s *scarce) Write(p []byte) (int, error) {
	if time.Since(s.began) < s.after {
		return 0, &os.PathError{Op: "write", Path: "vsock", Err: s.err}
	}
	n, _ := s.Buffer.Write(p[:min(len(p), s.most)])
	if n < len(p) {
		return n, &os.PathError{Op: "write", Path: "vsock", Err: s.err}
	}
	return n, nil
}

// A guest whose kernel has no memory for a moment loses nothing.
func TestNoMemoryForOutput(t *testing.T) {
	for name, c := range map[string]struct {
		to   scarce
		want error
	}{
		"enough":       {to: scarce{most: largeBuffer}},
		"for a while":  {to: scarce{err: unix.ENOMEM, most: largeBuffer, after: memoryBound / 2}},
		"small pieces": {to: scarce{err: unix.ENOBUFS, most: smallBuffer}},
		"always some":  {to: scarce{err: unix.ENOMEM, most: 10}},
		"never":        {to: scarce{err: unix.ENOMEM, after: time.Hour}, want: unix.ENOMEM},
		"another":      {to: scarce{err: unix.EIO, after: time.Millisecond}, want: unix.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := random(t, largeBuffer)
				c.to.began = time.Now()
				n, err := patient{&c.to}.Write(data)
				require.ErrorIs(t, err, c.want)
				if c.want != nil {
					assert.Zero(t, n)
					assert.LessOrEqual(t, time.Since(c.to.began), memoryBound+memoryPause)
					return
				}
				assert.Equal(t, len(data), n)
				assert.True(t, bytes.Equal(data, c.to.Bytes()))
			})
		})
	}
}
