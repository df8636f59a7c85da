package agent

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// newTransfer makes the first command of an agent, which reads or writes a file of this
// machine, and the host's end of its stream.
func newTransfer(t *testing.T, op wire.Op, name string) (*command, *os.File) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	ours, theirs := os.NewFile(uintptr(p[0]), "stream"), os.NewFile(uintptr(p[1]), "host")
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	require.NoError(t, theirs.SetDeadline(time.Now().Add(boxTimeout)))
	a := &agent{control: wire.NewWriter(io.Discard), greeted: make(chan struct{})}
	close(a.greeted)
	c := newCommand(a, wire.Command{ID: 1, Op: op, Path: wire.Text(name), Perm: 0o600})
	for i := range c.streams {
		if s := &c.streams[i]; s.done != nil {
			s.file = ours
			close(s.done)
		}
	}
	return c, theirs
}

// Guests that write into one directory have commands of the same number.
func TestFilesOfManyGuests(t *testing.T) {
	dir := t.TempDir()
	names := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")}
	ended := make(chan *wire.Exited, len(names))
	var hosts []*os.File
	for _, name := range names {
		c, host := newTransfer(t, wire.OpWrite, name)
		go func() {
			x, err := c.writeFile()
			assert.NoError(t, err, name)
			ended <- x
		}()
		hosts = append(hosts, host)
	}
	temporary := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, ".vole-*"))
		require.NoError(t, err)
		return found
	}
	require.Eventually(t, func() bool { return len(temporary()) == len(names) || len(ended) > 0 }, boxTimeout, time.Millisecond)
	for i, host := range hosts {
		_, err := host.WriteString(names[i])
		require.NoError(t, err)
		shut(host, unix.SHUT_WR)
	}
	for range names {
		if x := <-ended; assert.NotNil(t, x) {
			assert.Empty(t, x.What)
		}
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		assert.Equal(t, name, string(text))
	}
	assert.Empty(t, temporary())
}

// A signal ends the reading of a pipe in which nothing comes.
func TestReadingIsInterrupted(t *testing.T) {
	for name, early := range map[string]bool{"while it waits": false, "before it begins": true} {
		t.Run(name, func(t *testing.T) {
			fifo := filepath.Join(t.TempDir(), "fifo")
			require.NoError(t, unix.Mkfifo(fifo, 0o600))
			w, err := os.OpenFile(fifo, os.O_RDWR, 0)
			require.NoError(t, err)
			defer w.Close()
			c, host := newTransfer(t, wire.OpRead, fifo)
			if early {
				c.signal(unix.SIGKILL)
			}
			ended := make(chan *wire.Exited, 1)
			go func() {
				x, err := c.readFile()
				assert.NoError(t, err)
				ended <- x
			}()
			if !early {
				_, err = w.WriteString("x")
				require.NoError(t, err)
				_, err = host.Read(make([]byte, 1))
				require.NoError(t, err)
				c.signal(unix.SIGKILL)
			}
			select {
			case x := <-ended:
				require.NotNil(t, x)
				assert.Equal(t, fifo+": it was interrupted", x.What)
			case <-time.After(10 * time.Second):
				t.Fatal("it goes on")
			}
		})
	}
}
