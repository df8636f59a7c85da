package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/term"

	"github.com/vole-vmm/vole/guest/remote"
)

// nobody is an audience that does not listen.
type nobody struct{}

func (nobody) Await()   {}
func (nobody) Awaited() {}

// openFiles opens the standard files of an exec that has these.
func openFiles(t *testing.T, in, out, err *os.File) *execFiles {
	t.Helper()
	saved := [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	os.Stdin, os.Stdout, os.Stderr = in, out, err
	defer func() { os.Stdin, os.Stdout, os.Stderr = saved[0], saved[1], saved[2] }()
	f := &execFiles{}
	require.NoError(t, f.open(&execSession{}))
	t.Cleanup(f.close)
	return f
}

// TestExecTerminals: the guest's terminal is one of this machine's, and what is another
// is written to as a file.
func TestExecTerminals(t *testing.T) {
	a, b := openPty(t), openPty(t)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	for name, tc := range map[string]struct {
		files [3]*os.File
		want  [3]bool
		shown *pty
	}{
		"one terminal":         {[3]*os.File{a.slave, a.slave, a.slave}, [3]bool{true, true, true}, a},
		"output to another":    {[3]*os.File{a.slave, b.slave, a.slave}, [3]bool{true, false, true}, a},
		"both to another":      {[3]*os.File{a.slave, b.slave, b.slave}, [3]bool{true, false, false}, a},
		"errors to another":    {[3]*os.File{null, a.slave, b.slave}, [3]bool{false, true, false}, a},
		"errors on a terminal": {[3]*os.File{null, null, b.slave}, [3]bool{false, false, true}, b},
	} {
		t.Run(name, func(t *testing.T) {
			f := openFiles(t, tc.files[0], tc.files[1], tc.files[2])
			assert.Equal(t, tc.want, f.onTerminal)
			assert.Equal(t, terminalNumber(int(tc.shown.slave.Fd())), terminalNumber(f.shown.fd))
			c := new(remote.Cmd)
			f.connect(c, nobody{})
			assert.Equal(t, tc.files[1] == b.slave, c.Stdout != nil)
			assert.Equal(t, tc.files[2] == b.slave && !tc.want[2], c.Stderr != nil)
		})
	}
}

// TestExecEscapeUnread: the way out is seen while the guest takes nothing of what is typed.
func TestExecEscapeUnread(t *testing.T) {
	p := openPty(t)
	_, err := term.MakeRaw(int(p.slave.Fd()))
	require.NoError(t, err)
	f := openFiles(t, p.slave, p.slave, p.slave)
	quit := make(chan struct{}, 1)
	f.quit = func() { quit <- struct{}{} }
	c := new(remote.Cmd)
	f.connect(c, nobody{})
	p.typeIn("x")
	one := make([]byte, 1)
	_, err = c.Terminal.In.Read(one)
	require.NoError(t, err)
	assert.Equal(t, "x", string(one))
	p.typeIn("typed, and read by nobody\x1d\x1d\x1d")
	<-quit
}
