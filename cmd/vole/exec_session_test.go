package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/vmm/harness"
	"github.com/vole-vmm/vole/vmm/spec"
)

// TestExecVsock: the device that carries the agent carries the user's sockets too, with
// the user's context id.
func TestExecVsock(t *testing.T) {
	for word, cid := range map[string]uint32{"/tmp/v": 3, "/tmp/v,cid=77": 77} {
		v, err := spec.ParseVsock(word)
		require.NoError(t, err)
		s := &execSession{flags: &execFlags{}, args: []string{"true"}}
		s.machine.Vsock = &v
		o, err := s.options(nil)
		require.NoError(t, err)
		assert.Equal(t, cid, o.CID)
		assert.Equal(t, "/tmp/v", s.vsock)
		assert.Nil(t, s.machine.Vsock)
	}
}

// TestExecProfileToDevice: a profile that goes to what the guest has of its own is no reason
// to refuse the command.
func TestExecProfileToDevice(t *testing.T) {
	t.Setenv("GOCOVERDIR", "/dev")
	s := &execSession{flags: &execFlags{}, args: []string{"/bin/p.test", "-test.cpuprofile=/dev/null", "-test.trace=/dev/stdout", "-test.memprofile=/proc/self/fd/1"}}
	s.cfg.Kernel = "/proc/self/exe"
	scratch := s.scratch()
	defer scratch.Remove()
	o, err := s.options(scratch.Dirs())
	require.NoError(t, err)
	m, err := harness.New(o)
	require.NoError(t, err)
	assert.NoError(t, m.Close())
}

// TestExecProfileInHome: it is lost, and vole says so, but not where --rw saves it.
func TestExecProfileInHome(t *testing.T) {
	home, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	t.Setenv("HOME", home)
	for rw, says := range map[string]string{
		"": "vole: exec: warning: the profile or coverage in " + home + " will be gone with the guest: " +
			"a directory as wide as the user's home is not made writable without --rw " + home + "\n",
		home: "",
		"/":  "",
	} {
		var stderr strings.Builder
		s := &execSession{flags: &execFlags{}, args: []string{"/bin/p.test", "-test.trace=" + home + "/t"}}
		s.stderr = &lineWriter{w: &stderr}
		if rw != "" {
			s.flags.rw = []string{rw}
		}
		scratch := s.scratch()
		o, err := s.options(scratch.Dirs())
		require.NoError(t, err)
		assert.Equal(t, s.flags.rw, o.Root.Writable, "nothing but what was asked for")
		s.warnLeft(scratch.Left(), o.Root.Writable)
		assert.Equal(t, says, stderr.String(), rw)
	}
}
