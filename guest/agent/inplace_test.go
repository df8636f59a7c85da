package agent

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// Files of the kernel's and devices are written as they are.
func TestWriteInPlace(t *testing.T) {
	g, _ := newGuest(t, wire.Config{})
	ctx := bounded(t)
	require.NoError(t, g.WriteFile(ctx, "/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600))
	assert.Equal(t, "1\n-rw-r--r--\n", said(t, g, "cat /proc/sys/net/ipv4/ip_forward; ls -l /proc/sys/net/ipv4/ip_forward | cut -c1-10"))
	// The kernel takes what one write has for all of it.
	require.NoError(t, g.CopyIn(ctx, "/proc/sys/net/ipv4/ip_local_port_range", iotest.OneByteReader(strings.NewReader("12345 23456\n")), 0))
	assert.Equal(t, "12345\t23456\n", said(t, g, "cat /proc/sys/net/ipv4/ip_local_port_range"))
	err := g.WriteFile(ctx, "/proc/sys/net/ipv4/ip_local_port_range", []byte("nonsense"), 0)
	require.EqualError(t, err, "write /proc/sys/net/ipv4/ip_local_port_range: /proc/sys/net/ipv4/ip_local_port_range: invalid argument")

	require.NoError(t, g.WriteFile(ctx, "/dev/null", make([]byte, 1<<20), 0o600))
	assert.Equal(t, "crw-rw-rw-\n", said(t, g, "ls -l /dev/null | cut -c1-10"))
	said(t, g, "mkdir /tmp/t; ln -s /dev/full /tmp/t/full; ln -s /tmp/t/file /tmp/t/link; echo old >/tmp/t/file")
	require.ErrorContains(t, g.WriteFile(ctx, "/tmp/t/full", []byte("x"), 0o600), "no space left on device")
	assert.Equal(t, "crw-rw-rw-\n", said(t, g, "ls -lL /tmp/t/full | cut -c1-10"))
	// What is a link to a file is made a file, as ever.
	require.NoError(t, g.WriteFile(ctx, "/tmp/t/link", []byte("new\n"), 0o600))
	assert.Equal(t, "old\nnew\nfile\nfull\nlink\n", said(t, g, "cat /tmp/t/file /tmp/t/link; ls -A /tmp/t"))

	require.ErrorIs(t, g.WriteFile(ctx, "/proc/self", nil, 0o600), unix.EISDIR)
	require.ErrorIs(t, g.WriteFile(ctx, "/tmp/t", nil, 0o600), unix.EISDIR)
	require.Error(t, g.WriteFile(ctx, "/proc/sys/net/ipv4/no_such", []byte("1"), 0o600))
	require.ErrorIs(t, g.WriteFile(ctx, "/no/such", []byte("1"), 0o600), fs.ErrNotExist)
}

// What is not a file hears nothing of a transfer that was given up, and has all of one that
// was not in one write, if it is not too much.
func TestWriteToPipe(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		say     int64
		what    string
		want    string // by one Read
	}{
		"all":       {"content", 7, "", "content"},
		"not all":   {"content", 8, ": only 7 bytes of it came", ""},
		"a signal":  {"content", -1, ": it was interrupted", ""},
		"empty":     {"", 0, "", ""},
		"very much": {strings.Repeat("x", maxAtOnce+1), maxAtOnce + 1, "", strings.Repeat("x", maxAtOnce+1)},
	} {
		t.Run(name, func(t *testing.T) {
			fifo := filepath.Join(t.TempDir(), "fifo")
			require.NoError(t, unix.Mkfifo(fifo, 0o600))
			r, err := os.OpenFile(fifo, os.O_RDWR, 0)
			require.NoError(t, err)
			defer r.Close()
			cmd, host := newTransfer(t, wire.OpWrite, fifo)
			ended := make(chan *wire.Exited, 1)
			go func() {
				x, err := cmd.writeFile()
				assert.NoError(t, err)
				ended <- x
			}()
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(host, iotest.HalfReader(strings.NewReader(c.content)))
				shut(host, unix.SHUT_WR)
				if c.say < 0 {
					cmd.signal(unix.SIGKILL)
				} else {
					cmd.inputEnded(wire.Input{Bytes: c.say})
				}
				sent <- err
			}()
			switch got := make([]byte, max(100, len(c.want))); {
			case len(c.want) > 100: // more than it holds
				_, err := io.ReadFull(r, got)
				require.NoError(t, err)
			case c.want != "":
				n, err := r.Read(got)
				require.NoError(t, err)
				assert.Equal(t, c.want, string(got[:n]))
			}
			x := <-ended
			require.NotNil(t, x)
			require.NoError(t, <-sent)
			if c.what == "" {
				assert.Empty(t, x.What)
			} else {
				assert.Equal(t, fifo+c.what, x.What)
			}
			require.NoError(t, r.SetReadDeadline(time.Now()))
			_, err = r.Read(make([]byte, 1))
			require.ErrorIs(t, err, os.ErrDeadlineExceeded, "there is more")
			info, err := os.Stat(fifo)
			require.NoError(t, err)
			assert.Equal(t, fs.ModeNamedPipe, info.Mode().Type())
		})
	}
}

// A signal ends the writing to a pipe that nobody reads.
func TestWritingIsInterrupted(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	r, err := os.OpenFile(fifo, os.O_RDWR, 0)
	require.NoError(t, err)
	defer r.Close()
	cmd, host := newTransfer(t, wire.OpWrite, fifo)
	ended := make(chan *wire.Exited, 1)
	go func() {
		x, err := cmd.writeFile()
		assert.NoError(t, err)
		ended <- x
	}()
	const much = 1 << 20 // more than it holds
	_, err = io.Copy(host, strings.NewReader(strings.Repeat("x", much)))
	require.NoError(t, err)
	shut(host, unix.SHUT_WR)
	cmd.inputEnded(wire.Input{Bytes: much})
	_, err = r.Read(make([]byte, 1)) // it writes
	require.NoError(t, err)
	cmd.signal(unix.SIGKILL)
	if x := <-ended; assert.NotNil(t, x) {
		assert.Equal(t, fifo+": it was interrupted", x.What)
	}
}
