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
	var commands []*command
	for _, name := range names {
		c, host := newTransfer(t, wire.OpWrite, name)
		go func() {
			x, err := c.writeFile()
			assert.NoError(t, err, name)
			ended <- x
		}()
		hosts, commands = append(hosts, host), append(commands, c)
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
		commands[i].inputEnded(wire.Input{Bytes: int64(len(names[i]))})
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

// A host that gives a transfer up closes the stream, which is how a file ends, too: the signal
// may be heard of afterwards. What was there stays.
func TestHalfAFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a")
	require.NoError(t, os.WriteFile(name, []byte("old"), 0o600))
	c, host := newTransfer(t, wire.OpWrite, name)
	ended := make(chan *wire.Exited, 1)
	go func() {
		x, err := c.writeFile()
		assert.NoError(t, err)
		ended <- x
	}()
	_, err := host.WriteString("half")
	require.NoError(t, err)
	require.NoError(t, host.Close())
	select {
	case x := <-ended:
		t.Fatalf("it ended without a word of the host: %+v", x)
	case <-time.After(200 * time.Millisecond): // it has no reason to end, however long it has
	}
	c.signal(unix.SIGKILL)
	if x := <-ended; assert.NotNil(t, x) {
		assert.Equal(t, name+": it was interrupted", x.What)
	}
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "old", string(text))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, 1)
}

// A file is made when the host has said how long it is, and that is what came.
func TestLengthOfAFile(t *testing.T) {
	const content = "content"
	for name, c := range map[string]struct {
		say    func(c *command)
		before bool   // the stream ends
		what   string // behind the file's name; empty if it is made
	}{
		"at the end": {say: func(c *command) { c.inputEnded(wire.Input{Bytes: 7}) }},
		"before it":  {say: func(c *command) { c.inputEnded(wire.Input{Bytes: 7}) }, before: true},
		"twice":      {say: func(c *command) { c.inputEnded(wire.Input{Bytes: 7}); c.inputEnded(wire.Input{Bytes: 8}) }, before: true},
		"of others before": {say: func(c *command) {
			c.inputEnded(wire.Input{Stream: 1})
			c.inputEnded(wire.Input{Stream: 200})
			c.inputEnded(wire.Input{Bytes: 7})
		}},
		"more":                 {say: func(c *command) { c.inputEnded(wire.Input{Bytes: 8}) }, what: ": only 7 bytes of it came"},
		"less":                 {say: func(c *command) { c.inputEnded(wire.Input{}) }, what: ": only 7 bytes of it came"},
		"and a signal":         {say: func(c *command) { c.signal(unix.SIGKILL); c.inputEnded(wire.Input{Bytes: 7}) }, what: ": it was interrupted"},
		"and a signal, before": {say: func(c *command) { c.inputEnded(wire.Input{Bytes: 7}); c.signal(unix.SIGKILL) }, before: true, what: ": it was interrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a")
			require.NoError(t, os.WriteFile(file, []byte("old"), 0o640))
			cmd, host := newTransfer(t, wire.OpWrite, file)
			if c.before {
				c.say(cmd)
			}
			ended := make(chan *wire.Exited, 1)
			go func() {
				x, err := cmd.writeFile()
				assert.NoError(t, err)
				ended <- x
			}()
			if _, err := host.WriteString(content); c.what == "" {
				require.NoError(t, err)
			}
			shut(host, unix.SHUT_WR)
			if !c.before {
				c.say(cmd)
			}
			x := <-ended
			require.NotNil(t, x)
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			if c.what == "" {
				assert.Empty(t, x.What)
				assert.Equal(t, content, string(text))
				return
			}
			assert.Equal(t, file+c.what, x.What)
			assert.Equal(t, "old", string(text))
		})
	}
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
