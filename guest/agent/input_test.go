package agent

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
)

// cutting accepts connections that break when that many bytes have gone to the guest.
type cutting struct {
	net.Listener
	after int
}

func (l cutting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &cut{c, l.after}, nil
}

type cut struct {
	net.Conn
	left int
}

func (c *cut) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p[:min(len(p), c.left)])
	if c.left -= n; err == nil && n < len(p) {
		c.Close()
		err = syscall.ECONNRESET
	}
	return n, err
}

func (c *cut) CloseWrite() error { return c.Conn.(*net.UnixConn).CloseWrite() }

// A command that reads to the end of what it was sent must not look as if that had been all,
// whatever it says itself. What it does not want to read may break.
func TestInputIsCut(t *testing.T) {
	b := startBox(t, wire.Config{Root: hostRoot()})
	g := remote.New(cutting{b, 100000}, remote.Options{Secret: boxSecret})
	defer g.Close()
	for name, c := range map[string]struct{ script, want string }{
		"read":              {"wc -c", "stdin: cut short: in the guest: only 100000 bytes of it came"},
		"read, and not":     {"wc -c; exit 3", "exit status 3; stdin: cut short: in the guest: only 100000 bytes of it came"},
		"not read":          {"echo 100000", ""},
		"not read to there": {"head -c 10 >/dev/null; echo 100000", ""},
		"closed":            {"exec <&-; echo 100000", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := sh(t, g, c.script)
			cmd.Stdin = strings.NewReader(strings.Repeat("x", 200000))
			out, err := cmd.Output()
			assert.Equal(t, "100000\n", string(out))
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.want)
			require.ErrorIs(t, err, remote.ErrCut)
			require.Len(t, remote.StreamErrors(err), 1)
		})
	}
}

// A terminal whose line breaks is hung up; one whose typist has gone is at its end.
func TestTypingIsCut(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		lost *wire.Lost
	}{
		"all": {size: 3},
		"cut": {size: 4, lost: &wire.Lost{Stream: wire.Terminal, What: "only 3 bytes of it came"}},
	} {
		t.Run(name, func(t *testing.T) {
			tty, slave, err := openTerminal(wire.Size{})
			if err != nil {
				t.Skip(err)
			}
			program := os.NewFile(uintptr(slave), "slave")
			defer program.Close()
			defer tty.Close()
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			require.NoError(t, err)
			from, host := os.NewFile(uintptr(p[0]), "connection"), os.NewFile(uintptr(p[1]), "host")
			defer from.Close()
			cmd := newCommand(nil, wire.Command{Files: [3]wire.File{wire.FileTTY}})
			cs := &copiers{f: &files{tty: tty}}
			cs.input(&input{c: cmd, from: from, to: tty.File, tty: tty, stream: wire.Terminal})
			_, err = host.WriteString("ls\n")
			require.NoError(t, err)
			require.NoError(t, host.Close())
			cmd.inputEnded(wire.Input{Stream: wire.Terminal, Bytes: c.size})
			cs.copying.Wait()
			assert.Equal(t, c.lost, cs.lostInput())
			var line [10]byte
			n, err := program.Read(line[:])
			if c.lost == nil {
				require.NoError(t, err)
				assert.Equal(t, "ls\n", string(line[:n]))
			}
			n, err = program.Read(line[:])
			assert.Zero(t, n)
			require.ErrorIs(t, err, io.EOF)
			// Who has hung up hears nothing any more.
			_, err = program.WriteString("x")
			assert.Equal(t, c.lost != nil, errors.Is(err, unix.EIO), "%v", err)
		})
	}
}
